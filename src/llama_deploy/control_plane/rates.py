"""How often something may begin: never more than so many times within any window of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from llama_deploy.types.limits import RateLimit


class RateWindow:
    """The beginnings of the latest window, and when the next one may be.

    Exact over any window (a sliding log), and evenly spaced beyond the burst (the generic cell rate algorithm, ITU-T
    I.371).
    """

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._begun: deque[float] = deque(maxlen=limit.count)
        self._interval_s = limit.seconds / limit.count
        self._slack_s = ((limit.burst or limit.count) - 1) * self._interval_s
        self._arrival_at = 0.0

    def next_at(self, now: float) -> float:
        """When the next one may begin: `now`, or later."""
        free_at = self._arrival_at - self._slack_s if self.limit.burst is not None else now
        if len(self._begun) == self.limit.count:
            free_at = max(free_at, self._begun[0] + self.limit.seconds)
        return max(now, free_at)

    def begin(self, now: float) -> None:
        """One begins."""
        self._begun.append(now)
        self._arrival_at = max(self._arrival_at, now) + self._interval_s

    def give_back(self) -> None:
        """One that was counted has not begun: the latest is counted no more."""
        if self._begun:
            self._begun.pop()
            self._arrival_at -= self._interval_s

    @property
    def begun(self) -> tuple[float, ...]:
        """When those have begun that are remembered, oldest first."""
        return tuple(self._begun)

    def begun_before(self, other: RateWindow) -> None:
        """Remember what began under another limit."""
        self.remember(other.begun)

    def remember(self, begun: Iterable[float]) -> None:
        """Remember what began elsewhere, too."""
        moments = sorted((*self._begun, *begun))
        self._begun.clear()
        self._arrival_at = 0.0
        for moment in moments:
            self.begin(moment)
