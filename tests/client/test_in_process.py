"""The client inside the control plane's process: the same behaviour without a socket."""

from __future__ import annotations

import asyncio

import pytest
from tests.client.fake_control_plane import FakeControlPlane, FakeTask, Peer, silent
from tests.support import DEADLINE_S, eventually

from llama_deploy.client import Client, InProcessTransport
from llama_deploy.errors import CannotReachError, ConnectionLostError, LlamaDeployError, ShuttingDownError
from llama_deploy.messages.frames import ClientOp


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def client(plane: FakeControlPlane) -> Client:
    return Client(transport=InProcessTransport(plane.attach, None), timeout_s=DEADLINE_S)


async def test_run_and_stream(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    outputs = await asyncio.gather(*(client.run("s", input=str(number)) for number in range(10)))
    assert outputs == [str(number) for number in range(10)]
    assert [event.index async for event in client.stream("t", first=5)] == [5, 6, 7, 8, 9]
    assert len(plane.frames[0]) == 10
    await client.close()


async def test_closing_gives_the_port_back(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = silent
    running = asyncio.ensure_future(client.run("s", input="x"))
    await eventually(lambda: plane.tasks)
    port = client._transport._port  # type: ignore[attr-defined]
    await client.close()
    assert port.closed
    with pytest.raises(ConnectionLostError):
        await running


async def test_a_control_plane_that_stops_ends_what_waits(plane: FakeControlPlane, client: Client) -> None:
    def stopping(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        peer.refuse(0, ShuttingDownError("the control plane is stopping"))

    plane.handle = stopping
    with pytest.raises(ShuttingDownError):
        await client.run("s", input="x")


async def test_a_gateway_that_refuses_is_heard(plane: FakeControlPlane) -> None:
    def refuse(_: object) -> FakeControlPlane:
        raise ShuttingDownError("not started")

    client = Client(transport=InProcessTransport(refuse, None))  # type: ignore[arg-type]
    with pytest.raises(LlamaDeployError, match="not started"):
        await client.run("s", input="x")
    with pytest.raises(LlamaDeployError, match="not started"):
        await client.run("s", input="x")


async def test_a_transport_that_cannot_reconnect_is_not_asked_to(plane: FakeControlPlane, client: Client) -> None:
    assert client._transport.reconnects is False
    assert await client.run("s", input="x") == "X"
    plane.peers[0].refuse(0, CannotReachError("gone"))
    assert await client.run("s", input="y") == "Y"  # a new port
    assert len(plane.peers) == 2
