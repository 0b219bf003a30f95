"""What a proxy in front of deployments keeps to itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import httpx2
from starlette.requests import Request
from tests.support import eventually
from websockets.asyncio.server import ServerConnection, serve

from llama_deploy.apiserver.deployments.http.proxy import Proxy


async def test_tokens_and_pages_are_not_told_and_our_own_headers_take_their_place() -> None:
    seen: list[httpx2.Headers] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers)
        return httpx2.Response(204)

    proxy = Proxy()
    await proxy.close()
    proxy._client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    headers = {
        "Authorization": "Bearer of-the-caller",
        "Origin": "http://x",
        "X-Llama-Deploy-For": "boss admin",
        "A": "b",
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw})
    await proxy.request(request, "http://127.0.0.1:1/")
    await proxy.request(request, "http://127.0.0.1:1/", headers={"authorization": "Bearer of-ours"})
    await proxy.close()
    assert [one.get("authorization") for one in seen] == [None, "Bearer of-ours"]
    assert all("origin" not in one and "x-llama-deploy-for" not in one and one["a"] == "b" for one in seen)


class Pieces(httpx2.AsyncByteStream):
    """The body of an answer, and whether it was let go of."""

    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"piece"

    async def aclose(self) -> None:
        self.closed = True


async def test_who_leaves_before_there_is_an_answer_leaves_no_connection_behind() -> None:
    body = Pieces()
    proxy = Proxy()
    await proxy.close()
    proxy._client = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, stream=body)))
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    answer = await proxy.request(Request(scope), "http://127.0.0.1:1/")

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    await answer(scope, gone, send)
    await proxy.close()
    assert body.closed


class Caller:
    """A WebSocket whose owner says something when the other side has closed, and is slow to read."""

    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, closed: asyncio.Event) -> None:
        self.heard: list[str] = []
        self.code: int | None = None
        self.reads = asyncio.Event()
        self.said = asyncio.Event()
        self._closed = closed

    async def accept(self, subprotocol: str | None) -> None: ...

    async def receive(self) -> dict[str, str]:
        if self.said.is_set():
            await asyncio.Event().wait()
        await self._closed.wait()
        self.said.set()
        return {"type": "websocket.receive", "text": "still there?"}

    async def send_text(self, text: str) -> None:
        await self.reads.wait()
        self.heard.append(text)

    async def close(self, code: int, reason: str) -> None:
        self.code = code


async def test_what_was_said_before_the_end_comes_and_so_does_the_end() -> None:
    async def talk(socket: ServerConnection) -> None:
        for text in ("one", "two", "three"):
            await socket.send(text)
        await socket.close(4001)

    proxy = Proxy()
    async with serve(talk, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        caller = Caller(closed := asyncio.Event())
        passing = asyncio.create_task(proxy.websocket(caller, f"ws://127.0.0.1:{port}/"))  # type: ignore[arg-type]
        await eventually(lambda: not server.connections)
        closed.set()
        await caller.said.wait()
        for _ in range(10):  # turns of the loop, in which what was said finds nobody there
            await asyncio.sleep(0)
        caller.reads.set()
        await passing
    await proxy.close()
    assert (caller.heard, caller.code) == (["one", "two", "three"], 4001)
