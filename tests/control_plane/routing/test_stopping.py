"""A server that stops answers what it passes on in time, whoever is asked how often."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.control_plane.harness import world

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
