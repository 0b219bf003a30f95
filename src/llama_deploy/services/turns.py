"""How much an instance works on at once where several control planes send to it: each of them sees its own part only.

One control plane alone never sends more than there is room for, and nothing waits here. Several together may; what is
beyond a service's `concurrency` waits for its turn, in the order in which it came.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping

from llama_deploy.services.base import Service


class Turns:
    """What runs, by service, and what waits."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services
        self.limited = False
        """Whether anything ever has to wait: more than one control plane sends."""
        self.running: Counter[str] = Counter()
        self._waiting: dict[str, deque[Callable[[], bool]]] = {}

    def take(self, service: str, go: Callable[[], bool], *, first: bool = False) -> bool:
        """Begin, or go on, now where there is room; else `go` is called when there is, ahead of others if `first`.

        `go` answers false where there is nothing to be done any more, and the next one has the turn. `end` gives it
        back. Returns whether there was room at once; `go` was not called then.
        """
        if self.limited and self.running[service] >= self._concurrency(service):
            waiting = self._waiting.setdefault(service, deque())
            if first:
                waiting.appendleft(go)
            else:
                waiting.append(go)
            return False
        self.running[service] += 1
        return True

    def insist(self, service: str) -> None:
        """Something goes on without asking."""
        self.running[service] += 1

    def end(self, service: str) -> None:
        """Something has ended, or waits for a call: whoever waits has the turn."""
        self.running[service] -= 1
        waiting = self._waiting.get(service)
        while waiting and (not self.limited or self.running[service] < self._concurrency(service)):
            self.running[service] += 1
            if not waiting.popleft()():
                self.running[service] -= 1

    def _concurrency(self, service: str) -> int:
        served = self._services.get(service)
        return served.definition.concurrency if served is not None else 1
