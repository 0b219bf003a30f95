"""Ledgers: lists that an orchestrator only adds to, kept once and read by position: what was said, what was done.

Nothing but the new item and the new length is recorded when one is added, and nothing but what is looked at is read.
Services, clients and people read the same list, so what is on it need not be sent to anybody again.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, TypeVar, overload

ItemT = TypeVar("ItemT")


def ledger_key(path: str, name: str) -> str:
    """Where the length of a ledger stands in the state of its task; its items stand under `<key>:<position>`."""
    return f"{path}ledger:{name}"


class Ledger(Sequence[ItemT]):
    """JSON values by position. It is there, and empty, from the first time that its orchestrator speaks of it."""

    def __init__(self, own: MutableMapping[str, Any], path: str, name: str) -> None:
        if not name or "/" in name or ":" in name:
            raise ValueError(f"{name!r} is no name of a ledger: it has a character at least, no slash and no colon")
        self._own = own
        self._key = ledger_key(path, name)
        own.setdefault(self._key, 0)

    def append(self, item: ItemT) -> None:
        """Add an item at the end."""
        length = len(self)
        self._own[f"{self._key}:{length}"] = item
        self._own[self._key] = length + 1

    def __len__(self) -> int:
        length: int = self._own[self._key]
        return length

    @overload
    def __getitem__(self, position: int) -> ItemT: ...

    @overload
    def __getitem__(self, position: slice) -> list[ItemT]: ...

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return [self._own[f"{self._key}:{number}"] for number in range(len(self))[position]]
        return self._own[f"{self._key}:{range(len(self))[position]}"]

    def __iter__(self) -> Iterator[ItemT]:
        return (self._own[f"{self._key}:{number}"] for number in range(len(self)))
