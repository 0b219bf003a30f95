"""A TCP proxy in front of a server, which a test cuts: at once, or when the server's next answer comes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class CuttingProxy:
    """Passes bytes on, until it is told not to."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers_to_cut = 0
        """So many further answers of the server are not passed on: the connection is cut in their place."""
        self.cut_from_bytes = 0
        """Only what follows a request of at least so many bytes counts as such an answer."""
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection now."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                theirs, ours = await asyncio.open_connection(self._host, self._port)
                self._writers |= {writer, ours}
                try:
                    await self._pass_on(reader, writer, theirs, ours)
                finally:
                    self._writers -= {writer, ours}
                    for end in (writer, ours):
                        end.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        theirs: asyncio.StreamReader,
        ours: asyncio.StreamWriter,
    ) -> None:
        asked = 0

        async def up() -> None:
            nonlocal asked
            while data := await reader.read(1 << 20):
                asked = len(data)
                ours.write(data)

        async def down() -> None:
            while data := await theirs.read(1 << 20):
                if self.answers_to_cut and asked >= self.cut_from_bytes:
                    self.answers_to_cut -= 1
                    self.cuts += 1
                    return
                writer.write(data)

        both = [asyncio.ensure_future(up()), asyncio.ensure_future(down())]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)  # an end that was cut off raises, as it should
