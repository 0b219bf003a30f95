"""What is said about repeated measurements: the middle, the extremes, and ratios of what was measured side by side.

Pure arithmetic on numbers; it knows nothing of systems or scenarios.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Repeated measurements of one figure."""

    minimum: float
    median: float
    maximum: float
    count: int

    @property
    def spread(self) -> float:
        """(maximum - minimum) / median: how much the rounds disagree; 0 when the median is 0."""
        return (self.maximum - self.minimum) / self.median if self.median else 0.0


def summarise(values: Sequence[float]) -> Summary:
    """Raises `ValueError` when there is nothing to summarise."""
    if not values:
        raise ValueError("no measurement to summarise")
    return Summary(min(values), statistics.median(values), max(values), len(values))


def paired_ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours divided by theirs for each round in which both were measured, in the order of the rounds.

    Rounds where theirs is 0 have no ratio.
    """
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys()) if theirs[number]]
