"""Copies of the store for whoever asks over HTTP: one at a time, as a file that is gone once it is read."""

from __future__ import annotations

import asyncio
import glob
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from llama_deploy.state_stores import StateStore

PIECE_BYTES = 1 << 20
_ENDING = ".backup"


class Copies:
    """Makes copies of one store."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._lock = asyncio.Lock()

    @property
    def _folder(self) -> Path:
        """Beside the store, where there is room for as much again; a store without a place of its own: anywhere."""
        folder = Path(self._store.location).parent
        return folder if Path(self._store.location).is_file() else Path(tempfile.gettempdir())

    @property
    def _prefix(self) -> str:
        return f".{Path(self._store.location).name}."

    def remove_leftovers(self) -> None:
        """Remove what a crash has left of a copy. Only while the store is open: nobody else makes copies of it then."""
        if Path(self._store.location).is_file():
            for left in self._folder.glob(f"{glob.escape(self._prefix)}*{_ENDING}"):
                shutil.rmtree(left, ignore_errors=True)

    async def open(self) -> BinaryIO:
        """A copy of everything that is committed now, to be read and closed by the caller.

        It has no name any more, so that nothing stays of it. Raises `StoreUnavailableError` when it cannot be written.
        """
        async with self._lock:
            folder = await self._made_folder()
            try:
                await self._store.backup(Path(folder) / "copy")
                return await asyncio.to_thread((Path(folder) / "copy").open, "rb")
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _made_folder(self) -> str:
        """A folder of its own for a copy; nothing of it stays where nobody waits for it any more."""
        making = asyncio.ensure_future(
            asyncio.to_thread(tempfile.mkdtemp, prefix=self._prefix, suffix=_ENDING, dir=self._folder)
        )
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_remove_unwanted)
            raise


def _remove_unwanted(made: asyncio.Future[str]) -> None:
    if not made.cancelled() and made.exception() is None:
        shutil.rmtree(made.result(), ignore_errors=True)  # it is empty


async def pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    """The bytes of a file, which is closed at the end, also when nobody wants the rest."""
    try:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
    finally:
        file.close()
