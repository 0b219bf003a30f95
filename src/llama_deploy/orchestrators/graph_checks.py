"""What is wrong with a graph before it runs: names, nodes that cannot be reached, dead ends, cycles without a bound."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

START, END = "start", "end"

Link = tuple[str, str]


def problems(nodes: Sequence[str], edges: Sequence[tuple[str, str, bool]]) -> list[str]:
    """Every problem, in words. An edge is source, target, and whether it is bounded (goes back)."""
    found = [f"a node cannot be called {name!r}" for name in nodes if name in (START, END)]
    sources, targets = {START, *nodes}, {END, *nodes}
    for source, target, _ in edges:
        found += [_unknown(source, target, source, sources)] if source not in sources else []
        found += [_unknown(source, target, target, targets)] if target not in targets else []
    found += [f"{s} -> {t} is there twice" for s, t in {(s, t) for s, t, _ in edges} if _count(edges, s, t) > 1]
    if found:
        return found
    every = [(source, target) for source, target, _ in edges]
    forward = [(source, target) for source, target, bounded in edges if not bounded]
    from_start = reachable(START, every)
    to_end = reachable(END, [(target, source) for source, target in every])
    found += [f"{name} cannot be reached from the start" for name in nodes if name not in from_start]
    found += [f"{name} leads nowhere: no way from it to the end" for name in nodes if name not in to_end]
    found += [
        f"{source} -> {target} goes back to nowhere: {target} does not lead to {source}"
        for source, target, bounded in edges
        if bounded and source not in reachable(target, forward)
    ]
    cycle = _cycle([START, *nodes], forward)
    if cycle:
        found.append(f"the cycle {' -> '.join(cycle)} has no bound: give one of its edges at_most")
    elif END not in reachable(START, forward):
        found.append("the end cannot be reached without a loop")
    else:
        needed = [name for name in nodes if name in from_start and not any(target == name for _, target in forward)]
        found += [f"{name} is reached by loops alone: give it an edge that is no loop" for name in needed]
    return found


def reachable(name: str, links: Sequence[Link]) -> set[str]:
    """The node and all that its links lead to."""
    found, pending = {name}, [name]
    while pending:
        current = pending.pop()
        for source, target in links:
            if source == current and target not in found:
                found.add(target)
                pending.append(target)
    return found


def _count(edges: Sequence[tuple[str, str, bool]], source: str, target: str) -> int:
    return sum(1 for s, t, _ in edges if (s, t) == (source, target))


def _unknown(source: str, target: str, name: str, known: set[str]) -> str:
    close = get_close_matches(name, known, 1)
    hint = f": did you mean {close[0]!r}?" if close else ""
    return f"{source} -> {target}: there is no node {name!r}{hint}"


def _cycle(nodes: Sequence[str], links: Sequence[Link]) -> list[str]:
    """One cycle, its first node at both ends; empty where there is none."""
    state: dict[str, int] = {}
    for begin in nodes:
        if begin in state:
            continue
        path: list[str] = [begin]
        waiting = [[target for source, target in links if source == begin]]
        state[begin] = 1
        while path:
            if not waiting[-1]:
                state[path.pop()] = 2
                waiting.pop()
                continue
            target = waiting[-1].pop(0)
            if state.get(target) == 1:
                return [*path[path.index(target) :], target]
            if target not in state:
                state[target] = 1
                path.append(target)
                waiting.append([after for source, after in links if source == target])
    return []
