"""In which order the nodes of each layer stand, and how far apart: few crossings, straight ways.

The order is found by barycentres, sweeping down and up (Sugiyama, Tagawa and Toda, 1981); the places by moving each
layer as near as can be to the middle of its neighbours, which is an isotonic regression (pool adjacent violators).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

SWEEPS = 12
WAY = "\0\1way "
"""How the names of places begin that long edges and labels take."""
_Link = tuple[str, str]


def ordered(layer: Mapping[str, int], links: Sequence[_Link]) -> list[list[str]]:
    """The names of each layer, from left to right, as the best of all sweeps has them."""
    rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for name, number in layer.items():
        rows[number].append(name)
    above, below = _neighbours(links)
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(SWEEPS):
        if fewest == 0 and sweep:
            break
        down = sweep % 2 == 0
        beside = above if down else below
        numbers = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for number in numbers:
            fixed = {name: place for place, name in enumerate(rows[number - 1 if down else number + 1])}
            rows[number] = _sorted(rows[number], beside, fixed)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _neighbours(links: Sequence[_Link]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for upper, lower in links:
        below.setdefault(upper, []).append(lower)
        above.setdefault(lower, []).append(upper)
    return above, below


def _sorted(row: list[str], beside: Mapping[str, list[str]], fixed: Mapping[str, int]) -> list[str]:
    """A layer by the middle of what each name is linked to; one without links keeps its place."""
    middles = {}
    for place, name in enumerate(row):
        found = [fixed[other] for other in beside.get(name, ()) if other in fixed]
        middles[name] = sum(found) / len(found) if found else float(place)
    return sorted(row, key=lambda name: middles[name])


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, list[str]]) -> int:
    """How many pairs of links cross, between all neighbouring layers."""
    total = 0
    for upper, lower in pairwise(rows):
        place = {name: number for number, name in enumerate(lower)}
        ends = [place[name] for above in upper for name in sorted(below.get(above, ()), key=place.__getitem__)]
        total += sum(1 for number, end in enumerate(ends) for later in ends[number + 1 :] if later < end)
    return total


def spread(
    rows: Sequence[Sequence[str]], widths: Mapping[str, float], links: Sequence[_Link], *, gap: float
) -> dict[str, float]:
    """The middle of each name, the leftmost edge at 0."""
    above, below = _neighbours(links)
    places: dict[str, float] = {}
    for row in rows:
        x = 0.0
        for name in row:
            places[name] = x + widths[name] / 2
            x += widths[name] + gap
        for name in row:
            places[name] -= (x - gap) / 2
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            _moved(row, places, (above, below) if sweep == SWEEPS - 1 else (above if down else below,), widths, gap)
    left = min((places[name] - widths[name] / 2 for name in places), default=0.0)
    return {name: place - left for name, place in places.items()}


def _moved(
    row: Sequence[str],
    places: dict[str, float],
    sides: Sequence[Mapping[str, list[str]]],
    widths: Mapping[str, float],
    gap: float,
) -> None:
    """Move one layer as near as can be to the middle of its neighbours; a place on a long way pulls harder."""
    offset, offsets = 0.0, []
    for number, name in enumerate(row):
        if number:
            offset += (widths[row[number - 1]] + widths[name]) / 2 + gap
        offsets.append(offset)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for name, shift in zip(row, offsets, strict=True):
        found = [places[other] for side in sides for other in side.get(name, ())]
        wanted = sum(found) / len(found) if found else places[name]
        weight = (4.0 if name.startswith(WAY) else 1.0) if found else 0.1
        blocks.append((wanted - shift, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (first, first_weight, some), (second, second_weight, more) = blocks[-2:]
            together = first_weight + second_weight
            mean = (first * first_weight + second * second_weight) / together
            blocks[-2:] = [(mean, together, some + more)]
    position = 0
    for mean, _, many in blocks:
        for number in range(position, position + many):
            places[row[number]] = mean + offsets[number]
        position += many
