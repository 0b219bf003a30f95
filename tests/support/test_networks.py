"""Ways that can be cut: nothing passes, nobody is told, and what was said arrives once they are joined again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from tests.support import DEADLINE_S, eventually
from tests.support.brokers import listens
from tests.support.networks import Loopback, Namespaces, Network, link
from tests.support.ports import free_port

SERVER = """
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address = 2, True
Server((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
"""
CLIENT = """
import socket, sys
file = socket.create_connection((sys.argv[1], int(sys.argv[2]))).makefile("rwb", buffering=0)
for line in sys.stdin.buffer:
    file.write(line)
    sys.stdout.buffer.write(file.readline())
    sys.stdout.flush()
"""


class Client:
    """Says lines to the server over one connection, from within a part."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def at(cls, network: Network, part: str, port: int) -> Client:
        host, seen = await network.reach(part, port, of="server")
        process = await asyncio.create_subprocess_exec(
            *network.inside(part), sys.executable, "-c", CLIENT, host, str(seen),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return cls(process)

    def say(self, word: str) -> asyncio.Future[str]:
        """The answer, when it comes."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

        async def answer() -> str:
            assert self._process.stdout is not None
            return (await self._process.stdout.readline()).decode().strip()

        return asyncio.ensure_future(asyncio.wait_for(answer(), DEADLINE_S))

    async def end(self) -> None:
        self._process.kill()
        await self._process.wait()


@pytest.fixture(params=[Namespaces, Loopback] if Namespaces.possible() else [Loopback])
async def network(request: pytest.FixtureRequest) -> AsyncIterator[Network]:
    network: Network = request.param()
    await network.start(["server", "one", "two"])
    yield network
    await network.remove()


@pytest.mark.slow
async def test_a_way_that_is_cut_passes_nothing_until_it_is_joined(network: Network) -> None:
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        *network.inside("server"), sys.executable, "-c", SERVER, network.host("server"), str(port)
    )
    await eventually(lambda: listens(port, network.host("server")))
    one, two = [await Client.at(network, part, port) for part in ("one", "two")]
    assert [await one.say("a"), await two.say("b")] == ["a", "b"]
    await network.cut(link("server", "one"))
    answer = one.say("c")
    for number in range(5):
        assert await two.say(str(number)) == str(number)
    assert not answer.done()
    await network.join(link("one", "server"))
    assert await answer == "c"
    for process in (one, two):
        await process.end()
    server.kill()
    await server.wait()
