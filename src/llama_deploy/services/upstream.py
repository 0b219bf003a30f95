"""One control plane that an instance is connected to, as its runner sees it; transports are the links'."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from llama_deploy.messages.frames import Stopped


def _nowhere(_: list[Any]) -> None:
    """There is no connection."""


class Upstream:
    """What is to be said to one control plane: it goes out with the turn of the loop, while that is connected."""

    def __init__(self, send: Callable[[list[Any]], None] = _nowhere) -> None:
        self.send = send
        """Sends operations, in order, without waiting."""
        self.ready = False
        """Whether it has the instance registered."""
        self.meshed = False
        """Whether there are others, which may lead what this one does not."""
        self._outgoing: list[Any] = []
        self._flush_scheduled = False

    def post(self, operation: Any) -> None:
        """Say something, with whatever else is said in this turn of the loop; nothing is heard before it is ready."""
        self._outgoing.append(operation)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits."""
        self._flush_scheduled = False
        if self._outgoing and self.ready:
            operations, self._outgoing = self._outgoing, []
            self.send(operations)

    def welcomed(self) -> None:
        """It has the instance registered: what was said before is said again, as far as it still counts."""
        self._outgoing = [operation for operation in self._outgoing if isinstance(operation, Stopped)]
        self.ready = True
