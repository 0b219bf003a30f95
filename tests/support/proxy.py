"""A TCP proxy between a test's client and its server, that delays, cuts, and refuses as the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Forwards bytes both ways. `delay_s` is how late each piece arrives; while `refusing`, nobody gets in."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.delay_s = 0.0
        self.refusing = False
        self.connections = 0
        self._writers: dict[asyncio.StreamWriter, None] = {}
        self._passes = asyncio.Event()
        self._passes.set()

    def hold(self) -> None:
        """Pass nothing on, without a word: as a network that is cut."""
        self._passes.clear()

    def let_go(self) -> None:
        """Pass on what was held, and what comes."""
        self._passes.set()

    def cut(self) -> None:
        """Break every connection that there is."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if self.refusing:
            writer.transport.abort()
            return
        self.connections += 1
        await self._passes.wait()
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer: None, back: None}
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        for one in (writer, back):
            self._writers.pop(one, None)
            one.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._passes.wait()
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def proxied(target: int, port: int = 0) -> AsyncIterator[Proxy]:
    """A proxy before a port of this machine, for as long as the block runs."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await asyncio.sleep(0)
