"""A server that stops answers what it passes on in time, whoever is asked how often."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from tests.control_plane.harness import world
from tests.support import DEADLINE_S

from llama_deploy.control_plane.http import forwarding
from llama_deploy.control_plane.leadership import Member
from llama_deploy.errors import ShuttingDownError


async def test_a_request_that_is_asked_again_and_again_ends_when_the_server_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding, "CLOSING_S", 0.2)

    async def receive() -> Any:
        await asyncio.get_running_loop().create_future()

    async def send(_: Any) -> None:
        raise AssertionError("nothing is sent")

    closing = asyncio.Event()
    scope = {"type": "http", "method": "GET", "path": "/v1/tasks/a", "query_string": b"", "headers": []}
    exchange = forwarding._Exchange(scope, receive, send, closing)
    assert await exchange.while_wanted(asyncio.sleep(0, "answer")) == "answer"
    closing.set()

    async def ask_again_and_again() -> None:
        for _ in range(1000):  # each of them is shorter than what a server that stops waits for
            await exchange.while_wanted(asyncio.sleep(0.02))

    with pytest.raises(ShuttingDownError):
        await ask_again_and_again()


async def test_what_asks_others_while_its_control_plane_stops_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as made:
        plane = made.plane
        stop_schedules = plane.schedules.stop

        async def stop() -> None:
            plane.peers.connection(Member("b", "b", "http://127.0.0.1:1", 1, ()))  # a task is due there just now
            plane.peers.http("http://127.0.0.1:1")
            await stop_schedules()

        monkeypatch.setattr(plane.schedules, "stop", stop)
        await made.stop()
        assert not plane.peers._connections
        assert not plane.peers._http


class _Answer:
    """An answer of another control plane, as httpx has one."""

    def __init__(self) -> None:
        self.headers = httpx2.Headers()
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("who", ["the client", "the server"])
async def test_an_answer_that_arrives_as_its_client_leaves_is_closed(who: str) -> None:
    """Where the request is given up in the turn of the loop in which the answer has come, nobody else closes it."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[_Answer] = loop.create_future()
    left: asyncio.Future[Any] = loop.create_future()
    asked = asyncio.Event()

    class _Http:
        async def send(self, request: Any, *, stream: bool) -> Any:
            del request
            assert stream
            asked.set()
            return await arrived

    async def receive() -> Any:
        return await left

    async def send(_: Any) -> None:
        raise AssertionError("nothing is sent")

    async def stays(_: Any) -> None:
        await loop.create_future()

    peers = SimpleNamespace(passed_on=0, http=lambda _: _Http())
    plane: Any = SimpleNamespace(peers=peers, routing=SimpleNamespace(gone=stays))
    scope = {"type": "http", "method": "GET", "path": "/v1/tasks/a", "query_string": b"", "headers": []}
    exchange = forwarding._Exchange(scope, receive, send, asyncio.Event())
    exchange._body = b""
    front = forwarding.Forwarding(send, plane, asyncio.Event())  # type: ignore[arg-type]
    passing = asyncio.ensure_future(front._pass_on(exchange, Member("b", "b", "http://127.0.0.1:1", 1, ())))
    await asyncio.wait_for(asked.wait(), DEADLINE_S)
    answer = _Answer()
    arrived.set_result(answer)
    if who == "the client":
        left.set_result({"type": "http.disconnect"})
    else:
        await asyncio.sleep(0)  # the answer is there, and whoever waits for it is not told yet
        passing.cancel()
    await asyncio.gather(passing, return_exceptions=True)
    assert answer.closed
