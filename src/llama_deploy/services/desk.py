"""What the code of an attempt may want of the control plane, as its context sees whoever brings it there."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from llama_deploy.messages.frames import Returned


class Desk(Protocol):
    """Where an attempt's code has its wishes to the control plane taken care of; called from any thread."""

    def remembered(self, key: str) -> bytes | None:
        """JSON of what is recorded for the step under a key."""

    def all_remembered(self) -> Mapping[str, bytes]:
        """JSON of everything that is recorded for the step, by key."""
        ...

    def remember(self, key: str, value: bytes) -> Future[bytes]:
        """Have a value recorded under a key; the answer is the value that is recorded there."""
        ...

    def read_ledger(self, name: str, first: int) -> Future[bytes]:
        """Read a list of an orchestrator above the step from a position on; the answer is JSON of a `LedgerPage`."""
        ...

    def call(self, key: str, definition: bytes) -> Future[Returned]:
        """Call another service under a key; the answer is what came of it."""
        ...

    def end_call(self, key: str) -> None:
        """Nobody waits for a call any more."""

    def heartbeat(self, details: bytes | None) -> None:
        """The code lives; `details` is JSON."""

    @property
    def last_heartbeat(self) -> bytes | None:
        """JSON of what an earlier attempt said last."""


def take_page(items: list[Any], encoded: bytes) -> int | None:
    """Add a page of a ledger to the items so far; returns where the next one begins."""
    page = msgspec.json.decode(encoded)
    items += page["items"]
    following: int | None = page["next"]
    return following
