"""The client's part about the data itself: copies of all of it, what orchestrators keep, and erasing."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex
from typing import Any

from llama_deploy.client.http_calls import HttpCalls, segment, view_of
from llama_deploy.connections.problems import unexpected
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types import ErasurePage, ErasureView, LedgerPage


class DataCalls(HttpCalls):
    """Methods of `Client` about the data as a whole."""

    async def backup(self, path: str | os.PathLike[str], *, replace: bool = False) -> int:
        """Write a copy of everything that the control plane has recorded to a file; returns its size in bytes.

        Everything that was acknowledged before is in it; work goes on meanwhile. The file is there once all of it is
        on disk. Raises `InvalidRequestError` when there is a file of that name and it is not to be replaced, or when
        it cannot be written; nothing is left behind then.
        """
        return await save(self._transport.download("/v1/backup"), path, replace=replace)

    async def erase_session(self, session_id: str, *, dry_run: bool = False, by: str = "") -> ErasureView:
        """Erase a session: its tasks and what came of them, its state, and the bytes in the store's files.

        What runs is canceled first. With `dry_run` nothing is changed, and the answer says what would go. Who asked
        (`by`) and how much it was stays on record. Repeating it goes on where a crash has interrupted it. Raises
        `SessionNotFoundError`.
        """
        path = f"/v1/sessions/{segment(session_id)}/data"
        answer = await self._ask("DELETE", path, dry_run="true" if dry_run else None, by=by or None)
        return view_of(ErasureView, answer)

    async def ledger(self, task_id: str, name: str = "transcript", *, first: int = 0) -> AsyncIterator[Any]:
        """The items of a list that the task's orchestrator keeps and only adds to, from position `first` on, in order.

        `"transcript"` of a group chat; of one that is a node of another, with the path to it: `"debate/transcript"`.
        Ends with the last item that there is now. Raises `TaskNotFoundError`, `LedgerNotFoundError`.
        """
        path = f"/v1/tasks/{segment(task_id)}/ledgers/{'/'.join(map(segment, name.split('/')))}"
        position: int | None = first
        while position is not None:
            page = await self._get(LedgerPage, path, first=position)
            for item in page.items:
                yield item
            position = page.next

    async def get_session_memory(self, session_id: str) -> dict[str, Any]:
        """What each service remembers of the session, by its name, as recorded. Raises `SessionNotFoundError`."""
        memory = await self._ask("GET", f"/v1/sessions/{segment(session_id)}/memory")
        if not isinstance(memory, dict):
            raise unexpected("a session's memory that is not an object", self._transport.address)
        return memory

    async def clear_session_memory(self, session_id: str, service: str | None = None) -> list[str]:
        """Have a service, or every service, forget the session; the names of those that had something to forget.

        It is recorded when this returns, and repeating it is harmless. Raises `SessionNotFoundError`, and
        `MemoryBusyError` while a step is at work with the memory.
        """
        found = await self._ask("DELETE", f"/v1/sessions/{segment(session_id)}/memory", service=service)
        if not isinstance(found, list):
            raise unexpected("names that are not a list", self._transport.address)
        return [str(name) for name in found]

    async def list_erasures(self) -> list[ErasureView]:
        """What was ever erased, the latest first."""
        return (await self._get(ErasurePage, "/v1/erasures")).items


async def save(pieces: AsyncIterator[bytes], path: str | os.PathLike[str], *, replace: bool = False) -> int:
    """Write pieces to a file that takes its name once all of them are on disk; returns its size in bytes.

    Raises `InvalidRequestError` when there is a file of that name and it is not to be replaced, or when it cannot be
    written; nothing is left behind then.
    """
    file = await asyncio.to_thread(_NewFile, Path(path), replace=replace)
    try:
        async for piece in pieces:
            await asyncio.to_thread(file.write, piece)
        return await asyncio.to_thread(file.finish)
    finally:
        await asyncio.to_thread(file.close)


class _NewFile:
    """A file that takes its name, and the place of an earlier one, once all of it is on disk."""

    def __init__(self, target: Path, *, replace: bool) -> None:
        if target.exists() and not replace:
            raise InvalidRequestError(
                f"there is a file {target}", fix="name another one, or replace it (--replace, replace=True)"
            )
        self._target = target
        self._unfinished = target.with_name(f".{target.name}.{token_hex(4)}.unfinished")
        try:
            descriptor = os.open(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise _unwritable(target, error) from error
        self._file = os.fdopen(descriptor, "wb")

    def write(self, piece: bytes) -> None:
        """Add a piece. Raises `InvalidRequestError` where the disk takes no more."""
        try:
            self._file.write(piece)
        except OSError as error:
            raise _unwritable(self._target, error) from error

    def finish(self) -> int:
        """Give it its name; returns its size in bytes."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._unfinished.replace(self._target)
        except OSError as error:
            raise _unwritable(self._target, error) from error
        return self._file.tell()

    def close(self) -> None:
        """Leave nothing behind of what was not finished."""
        with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
            self._file.close()
        self._unfinished.unlink(missing_ok=True)


def _unwritable(target: Path, error: OSError) -> InvalidRequestError:
    return InvalidRequestError(f"{target} cannot be written", why=str(error))
