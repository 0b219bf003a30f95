"""Reading ledgers: the lists that orchestrators keep in the state of their task, for services, clients and people.

A service names a ledger as the orchestrator that sent it its step does; whoever asks from outside adds the path to
that orchestrator (`debate/transcript`). Nothing is recorded here. Of an ended task, the state is read from its history.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane.refusals import not_current
from llama_deploy.control_plane.state_changes import own_state_of
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import LedgerNotFoundError, LlamaDeployError
from llama_deploy.messages.frames import ReadLedger
from llama_deploy.orchestrators.ledger import ledger_key
from llama_deploy.types.ledgers import LedgerPage

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

Told = Callable[[bytes, LlamaDeployError | None], None]

PAGE_ITEMS_MAX = 1_000
"""Items of one page."""
PAGE_BYTES = 1024 * 1024
"""A page ends with the item that reaches this size."""


class Ledgers:
    """The ledgers of one engine's tasks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, op: ReadLedger, told: Told) -> None:
        """A page for the service that works on a step: JSON of a `LedgerPage`."""

        def use(entry: TaskEntry | None) -> None:
            if entry is None:
                told(b"", not_current(op.step_id))
            else:
                self._engine.in_turn(entry, partial(self._read, entry, op, told))

        self._engine.cache.with_entry(op.step_id.rpartition(":")[0], use)

    def _read(self, entry: TaskEntry, op: ReadLedger, told: Told) -> None:
        if entry.stale:
            self.read(op, told)
            return
        step = entry.open.get(op.step_id)
        if step is None or entry.final:
            told(b"", not_current(op.step_id))
            return
        own = entry.private.own or {}
        path = step.tag or ""
        while path:
            path = path.rpartition("/")[0]
            above = f"{path}/" if path else ""
            if ledger_key(above, op.name) in own:
                told(_page(own, above + op.name, op.first, PAGE_ITEMS_MAX), None)
                return
        told(b"", _unknown(entry.row.task_id, op.name, own))

    async def page(self, task_id: str, name: str, *, first: int, limit: int) -> LedgerPage:
        """A page for whoever asks from outside. Raises `TaskNotFoundError`, `LedgerNotFoundError`."""
        entry = await self._engine.cache.get(task_id)
        own = entry.private.own
        if own is None:
            own = own_state_of(task_id, await self._engine.contents.history(task_id))
        path, slash, last = name.rpartition("/")
        if ledger_key(path + slash, last) not in own:
            raise _unknown(task_id, name, own)
        page = LedgerPage.model_validate_json(_page(own, name, first, limit))
        page.items = self._engine.redact.value(page.items)
        return page


def _page(own: dict[str, bytes], name: str, first: int, limit: int) -> bytes:
    path, slash, last = name.rpartition("/")
    key = ledger_key(path + slash, last)
    length = int(own[key])
    items: list[msgspec.Raw] = []
    size = 0
    for number in range(first, min(length, first + limit)):
        items.append(msgspec.Raw(own[f"{key}:{number}"]))
        size += len(own[f"{key}:{number}"])
        if size >= PAGE_BYTES:
            break
    following = first + len(items) if first + len(items) < length and items else None
    page = {"name": name, "first": first, "items": items, "length": length, "next": following}
    return msgspec.json.encode(page)


def _unknown(task_id: str, name: str, own: dict[str, bytes]) -> LedgerNotFoundError:
    mark = ledger_key("", "")
    known = [
        path + last
        for path, found, last in (key.rpartition(mark) for key in own)
        if found and ":" not in last and (not path or path.endswith("/"))
    ]
    return LedgerNotFoundError(
        f"task {task_id} has no ledger {name[:200]!r}",
        why="ledgers: " + (", ".join(sorted(known)[:20]) or "none so far"),
        fix="name one that its orchestrator keeps; those of a nested orchestrator are gone when that has ended",
    )
