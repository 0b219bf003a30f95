"""The interface of a measured system.

A `System` says what it is, what it can run, and how to start it; what runs is a `Running`, which knows its processes
and can send a client. Scenarios see nothing else, so that every system is asked in the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


class Running(ABC):
    """A system that has been started and answers."""

    @abstractmethod
    def processes(self) -> dict[str, list[int]]:
        """The first process of each of its process families by role (`control_plane`, `service`, `broker`, …).

        The client is not among them, and neither is a server that was found running.
        """

    @abstractmethod
    def client(
        self, scenario: str, load: Mapping[str, Any], *, on_event: Callable[[str], None] | None = None
    ) -> dict[str, float]:
        """Runs a client process with this load (the fields of `benchmarks.load.Load`) to its end; returns its figures.

        Raises `ProcessFailedError` when the client fails or a system answers wrongly.
        """


class System(ABC):
    """A system that can be measured."""

    name: str
    title: str
    note: str
    """How it is set up, in one sentence for the report."""
    scenarios: frozenset[str]
    """The names of the scenarios that it can run."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot be measured here, or None when it can."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes what it needs (its environment). Not measured."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """What was measured, by package or program."""

    @abstractmethod
    def running(self, scenario: str, folder: Path) -> AbstractContextManager[Running]:
        """Starts it for a scenario with an empty store in `folder`, and stops it on leaving.

        Raises `ProcessFailedError` when it does not become ready.
        """
