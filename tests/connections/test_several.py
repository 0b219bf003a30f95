"""A client of several control planes of one store: it goes on with another when the one that it asks is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus

import msgspec
import pytest
from tests.client.fake_control_plane import FakeControlPlane, FakeTask, Peer, silent
from tests.support import DEADLINE_S, eventually

from llama_deploy.client import Client, SyncClient
from llama_deploy.connections.several import SeveralAddresses, transport_to
from llama_deploy.connections.websocket import WebSocketTransport
from llama_deploy.errors import (
    CannotReachError,
    ConnectionLostError,
    QueueFullError,
    SettingError,
    ShuttingDownError,
)
from llama_deploy.messages.frames import ClientOp, Forget, Items, Refused, StreamEnd, Submit, Subscribe, Wait


@pytest.fixture
async def planes() -> AsyncIterator[list[FakeControlPlane]]:
    """Three of one store: they know the same tasks."""
    made = [FakeControlPlane() for _ in range(3)]
    for plane in made:
        plane.tasks = made[0].tasks
        await plane.start()
    yield made
    for plane in made:
        await plane.stop()


def urls(planes: list[FakeControlPlane]) -> str:
    return ",".join(plane.url for plane in planes)


def asked(planes: list[FakeControlPlane]) -> list[FakeControlPlane]:
    return [plane for plane in planes if plane.paths]


@pytest.mark.parametrize("url", ["", " , ", [], ["http://a:1", "nonsense"], "http://a:1,b:2"])
def test_what_is_no_url_is_refused(url: str | list[str]) -> None:
    with pytest.raises(SettingError):
        transport_to(url)


def test_one_address_needs_no_choice() -> None:
    assert isinstance(transport_to("http://a:1/"), WebSocketTransport)
    assert isinstance(transport_to("http://a:1, http://a:1/"), WebSocketTransport)
    assert isinstance(transport_to(["http://a:1", "http://b:1"]), SeveralAddresses)


def test_chance_decides_where_a_client_begins() -> None:
    began = set()
    for _ in range(200):
        transport = transport_to("http://a:1,http://b:1,http://c:1")
        assert isinstance(transport, SeveralAddresses)
        assert transport.address == "http://a:1, http://b:1, http://c:1"
        began.add(transport._transports[0].address)
    assert began == {"http://a:1", "http://b:1", "http://c:1"}


async def test_one_is_asked_and_the_others_are_left_alone(planes: list[FakeControlPlane]) -> None:
    async with Client(urls(planes), timeout_s=DEADLINE_S) as client:
        for _ in range(3):
            assert await client.run("s", input="x") == "X"
    assert len(asked(planes)) == 1
    assert sum(len(plane.paths) for plane in planes) == 1


async def test_one_that_does_not_answer_is_passed_over(planes: list[FakeControlPlane]) -> None:
    await planes[0].stop()
    await planes[1].stop()
    async with Client([plane.url for plane in planes], timeout_s=DEADLINE_S) as client:
        assert await client.run("s", input="x") == "X"
    assert asked(planes) == [planes[2]]


async def test_one_that_is_full_is_passed_over(planes: list[FakeControlPlane]) -> None:
    problem = msgspec.json.encode(QueueFullError("10 clients are connected").to_problem())
    planes[0].refuse_handshake = planes[1].refuse_handshake = (HTTPStatus.TOO_MANY_REQUESTS, problem)
    async with Client(urls(planes), timeout_s=DEADLINE_S) as client:
        assert await client.run("s", input="x") == "X"


async def test_nobody_answers_at_all(planes: list[FakeControlPlane]) -> None:
    for plane in planes:
        await plane.stop()
    async with Client(urls(planes)) as client:
        for call in (client.run("s", input="x"), client.status()):
            with pytest.raises(CannotReachError) as caught:
                await call
            assert all(plane.url in str(caught.value) for plane in planes)


async def test_a_wait_goes_on_at_another(planes: list[FakeControlPlane]) -> None:
    for plane in planes:
        plane.handle = silent
    async with Client(urls(planes), timeout_s=DEADLINE_S, reconnect_timeout_s=DEADLINE_S) as client:
        waiting = asyncio.create_task(client.run("s", input="x", task_id="t"))
        await eventually(lambda: "t" in planes[0].tasks)
        (first,) = asked(planes)
        planes[0].tasks["t"].end("completed", kind="json", value="done elsewhere")
        for plane in planes:
            plane.handle = FakeControlPlane().handle
        await first.stop()
        assert await waiting == "done elsewhere"
    (second,) = [plane for plane in asked(planes) if plane is not first]
    assert [type(op) for op in second.ops] in ([Wait], [Submit])


async def test_one_that_stops_sends_its_clients_to_another(planes: list[FakeControlPlane]) -> None:
    def leaving(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        problem = msgspec.json.encode(ShuttingDownError("stopping").to_problem())
        peer.reply(Refused(op.request, problem))

    planes[0].handle = planes[1].handle = leaving
    async with Client(urls(planes), timeout_s=DEADLINE_S, reconnect_timeout_s=DEADLINE_S) as client:
        assert await client.run("s", input="x") == "X"
    assert [type(op) for op in planes[2].ops] == [Submit]


async def test_a_stream_goes_on_at_another_without_gap_or_repetition(planes: list[FakeControlPlane]) -> None:
    task = planes[0].tasks["t"] = FakeTask({"task_id": "t"})
    task.events = list(range(100))

    def half(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        if isinstance(op, Subscribe):
            upto = min(op.first + 40, 100)
            peer.reply(Items(op.request, op.first, [b"%d" % number for number in range(op.first, upto)]))
            if upto == 100:
                peer.reply(StreamEnd(op.request))
            else:
                asyncio.get_running_loop().call_later(0.01, peer.drop)
        else:
            assert isinstance(op, Forget)

    for plane in planes:
        plane.handle = half
    async with Client(urls(planes), reconnect_timeout_s=DEADLINE_S) as client:
        events = [event.index async for event in client.stream("t")]
    assert events == list(range(100))
    assert len(asked(planes)) == 3


async def test_requests_over_http_go_to_one_that_answers(planes: list[FakeControlPlane]) -> None:
    for plane in planes:
        plane.refuse_handshake = (HTTPStatus.OK, b'{"name":"x"}')
    await planes[0].stop()
    async with Client(urls(planes)) as client:
        assert await client.status() == {"name": "x"}
        await planes[1].stop()
        assert await client.status() == {"name": "x"}
        await planes[2].stop()
        with pytest.raises((CannotReachError, ConnectionLostError)):
            await client.status()


async def test_a_request_refused_because_one_stops_goes_to_another(planes: list[FakeControlPlane]) -> None:
    problem = msgspec.json.encode(ShuttingDownError("stopping").to_problem())
    for plane in planes:
        plane.refuse_handshake = (HTTPStatus.SERVICE_UNAVAILABLE, problem)
    async with Client(urls(planes)) as client:
        with pytest.raises(ShuttingDownError):
            await client.status()
        planes[1].refuse_handshake = (HTTPStatus.OK, b'{"name":"x"}')
        assert await client.status() == {"name": "x"}


async def test_the_blocking_client_knows_several_as_well(planes: list[FakeControlPlane]) -> None:
    await planes[0].stop()

    def run() -> str:
        with SyncClient(urls(planes), timeout_s=DEADLINE_S) as client:
            return str(client.run("s", input="x"))

    assert await asyncio.to_thread(run) == "X"
