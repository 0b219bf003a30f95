"""What a broken connection does to a caller: nothing, as long as it can be mended; then a clear error."""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus

import msgspec
import pytest
from tests.client.fake_control_plane import FakeControlPlane, FakeTask, Peer, accept, answer, silent
from tests.support import DEADLINE_S, eventually

from llama_deploy.client import Client
from llama_deploy.connections import connection
from llama_deploy.errors import (
    CannotReachError,
    ConnectionLostError,
    LlamaDeployError,
    ProtocolError,
    QueueFullError,
    SettingError,
    ShuttingDownError,
)
from llama_deploy.messages.frames import ClientOp, Forget, Refused, StreamEnd, Submit, Wait


class Passed:
    """How much time has passed for a client that loses its connection: the pauses that it makes, and nothing else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        next_pause = connection.Connection._next_pause

        def counted(of: connection.Connection, error: LlamaDeployError) -> float | None:
            pause_s = next_pause(of, error)
            self.seconds += pause_s or 0.0
            return pause_s

        monkeypatch.setattr(connection.Connection, "_next_pause", counted)
        monkeypatch.setattr(connection.Connection, "_now", lambda _: self.seconds)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Passed:
    return Passed(monkeypatch)


class Once:
    """Behaves as told until it has dropped the connection once, then answers."""

    def __init__(self, *, accepting: bool) -> None:
        self.accepting = accepting

    def __call__(self, plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        plane.handle = answer
        if isinstance(op, Submit):
            if self.accepting:
                accept(plane, peer, op)
            else:
                plane.record(op)
        # what was written before is still delivered; the closing is not announced
        asyncio.get_running_loop().call_later(0.01, peer.drop)


async def test_nothing_connects_before_it_is_needed(plane: FakeControlPlane) -> None:
    async with Client(plane.url):
        pass
    assert plane.paths == []


async def test_the_first_failure_is_told_at_once(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    async with Client(url, reconnect_timeout_s=1e6) as client, asyncio.timeout(DEADLINE_S):
        with pytest.raises(CannotReachError) as caught:
            await client.run("s", input="x")
    assert caught.value.render().splitlines() == [
        f"Error LD301: cannot reach the control plane at {url}",
        "  Nothing is listening there (connection refused).",
        "  Fix:  llamactl dev               start everything on this machine",
        "        llamactl -s URL status     or use a running control plane; it said its URL when it started",
        "  More: llamactl explain LD301",
    ]


async def test_a_name_that_resolves_to_nothing_is_told(free_port: int) -> None:
    async with Client(f"http://localhost:{free_port}") as client:
        with pytest.raises(CannotReachError, match="connection refused"):
            await client.submit("s", input="x")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ws://h", "http://", "http://h:port", "http://h/?a=b", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="not the URL of a control plane"):
        Client(url)


async def test_the_protocol_is_named_when_connecting(plane: FakeControlPlane) -> None:
    async with Client(plane.url + "/") as client:
        await client.run("s", input="x")
    assert plane.paths == ["/v1/connect/client?protocol=1"]


async def test_another_server_is_told_from_ours(plane: FakeControlPlane, client: Client) -> None:
    plane.refuse_handshake = HTTPStatus.NOT_FOUND, b"<html>"
    with pytest.raises(ProtocolError, match="not a control plane of this version"):
        await client.run("s", input="x")
    plane.refuse_handshake = HTTPStatus.BAD_GATEWAY, b"<html>"
    with pytest.raises(CannotReachError, match="HTTP 502"):
        await client.run("s", input="x")


async def test_a_server_without_websockets_is_told_from_ours() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ready\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ProtocolError, match="no WebSocket handshake"):
            await client.run("s", input="x")


async def test_a_refused_handshake_is_the_error_that_it_was(plane: FakeControlPlane, client: Client) -> None:
    problem = msgspec.json.encode(ShuttingDownError("the control plane is stopping").to_problem())
    plane.refuse_handshake = HTTPStatus.SERVICE_UNAVAILABLE, problem
    with pytest.raises(ShuttingDownError):
        await client.run("s", input="x")


async def test_a_server_that_stops_in_the_middle_of_the_handshake_is_asked_again(
    plane: FakeControlPlane, client: Client
) -> None:
    """Whoever connects while a control plane is told to stop is answered with a bare HTTP 500."""
    plane.handle = Once(accepting=False)
    running = asyncio.ensure_future(client.run("s", input="x", task_id="t"))
    await eventually(lambda: plane.ops)
    plane.refuse_handshake = HTTPStatus.INTERNAL_SERVER_ERROR, b"Internal Server Error"
    await eventually(lambda: len(plane.paths) > 2)
    plane.refuse_handshake = None
    assert await running == "X"
    plane.refuse_handshake = HTTPStatus.INTERNAL_SERVER_ERROR, b"Internal Server Error"
    async with Client(plane.url) as other:
        with pytest.raises(CannotReachError, match="HTTP 500"):
            await other.run("s", input="x")


async def test_dropped_before_acceptance_the_same_task_is_submitted_again(
    plane: FakeControlPlane, client: Client
) -> None:
    plane.handle = Once(accepting=False)
    assert await client.run("s", input="x", task_id="t") == "X"
    assert [type(op) for op in plane.ops] == [Submit, Submit]
    assert list(plane.tasks) == ["t"]


async def test_a_submission_without_wait_is_repeated_too(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = Once(accepting=False)
    assert await client.submit("s", input="x", task_id="t") == "t"
    assert [type(op) for op in plane.ops] == [Submit, Submit]


async def test_dropped_while_it_waits_it_only_waits_again(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = Once(accepting=True)
    running = asyncio.ensure_future(client.run("s", input="x", task_id="t"))
    await eventually(lambda: "t" in plane.tasks)
    plane.tasks["t"].end("completed", result="done meanwhile")
    assert await running == "done meanwhile"
    assert [type(op) for op in plane.ops] == [Submit, Wait]


async def test_a_restart_of_the_control_plane_is_not_noticed(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = silent
    running = [asyncio.ensure_future(client.run("s", input=str(number))) for number in range(50)]
    await eventually(lambda: len(plane.tasks) == 50)
    await plane.stop()
    for number, task in enumerate(plane.tasks.values()):
        task.end("completed", result=f"r{number}")
    plane.handle = answer
    later = asyncio.ensure_future(client.run("s", input="asked during the outage"))
    await plane.start()
    assert await asyncio.gather(*running) == [f"r{number}" for number in range(50)]
    assert await later == "ASKED DURING THE OUTAGE"
    assert len(plane.tasks) == 51


async def test_a_loss_for_good_is_told_to_everybody_who_waits(plane: FakeControlPlane) -> None:
    plane.handle = silent
    async with Client(plane.url, reconnect_timeout_s=0.2) as client:
        accepted = asyncio.ensure_future(client.run("s", input="x", task_id="accepted"))
        await eventually(lambda: "accepted" in plane.tasks)
        plane.handle = lambda *_: None
        unknown = asyncio.ensure_future(client.submit("s", input="x", task_id="unknown"))
        reading = asyncio.ensure_future(anext(client.stream("accepted", first=3)))
        await eventually(lambda: len(plane.ops) == 3)
        await plane.stop()
        for waiting, told in [
            (accepted, "Task accepted is recorded and goes on."),
            (unknown, "not known whether task unknown was recorded"),
            (reading, "read again from number 3"),
        ]:
            with pytest.raises(ConnectionLostError, match=r"could not be made again in 0\.2 s") as caught:
                await waiting
            assert told in caught.value.why
            assert caught.value.details["task_id"] in {"accepted", "unknown"}
        with pytest.raises(CannotReachError):
            await client.result("accepted")
        plane.handle = answer
        plane.tasks["accepted"].end("completed", result="there")
        await plane.start()
        assert await client.result("accepted") == "there"


async def test_a_server_that_drops_every_connection_is_given_up(plane: FakeControlPlane, passed: Passed) -> None:
    plane.handle = lambda plane, peer, op: peer.drop()
    async with Client(plane.url, reconnect_timeout_s=0.5) as client:
        with pytest.raises(ConnectionLostError):
            await client.run("s", input="x")
    assert passed.seconds == pytest.approx(0.5)
    assert 2 < len(plane.paths) < 15


async def test_a_good_connection_makes_the_time_to_reconnect_whole(
    plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch, passed: Passed
) -> None:
    monkeypatch.setattr(connection, "STEADY_S", 0.0)
    plane.handle = silent
    async with Client(plane.url, reconnect_timeout_s=0.3) as client:
        running = asyncio.ensure_future(client.run("s", input="x", task_id="t"))
        asked = 0
        while passed.seconds < 0.6:  # silent but steady connections, each cut: longer than one outage may be
            await eventually(lambda: len(plane.ops) > asked)  # noqa: B023
            asked = len(plane.ops)
            plane.peers[-1].drop()
        plane.tasks["t"].end("completed", result="done")
        plane.handle = answer
        assert await running == "done"


@pytest.mark.parametrize("rubbish", [b"\xc1", b"\x91\x91\xa3Foo", "text", b"\x91\x92\xa5Ended\x01"])
async def test_rubbish_ends_what_waits_at_once(plane: FakeControlPlane, client: Client, rubbish: bytes | str) -> None:
    plane.handle = lambda plane, peer, op: peer.send_raw(rubbish)
    with pytest.raises(ProtocolError, match="something unexpected"):
        await client.run("s", input="x")
    plane.handle = answer
    assert await client.run("s", input="x") == "X"


async def test_a_reply_of_the_wrong_kind_ends_its_request_only(plane: FakeControlPlane, client: Client) -> None:
    def confuse(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        if isinstance(op, Wait):
            peer.reply(StreamEnd(op.request))
        else:
            answer(plane, peer, op)

    plane.handle = confuse
    with pytest.raises(ProtocolError, match="StreamEnd"):
        await client.result("t")
    assert await client.run("s", input="x") == "X"
    assert len(plane.paths) == 1


async def test_an_outcome_that_is_no_result_is_told(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    task.result = {"kind": 7}
    with pytest.raises(ProtocolError, match="no result"):
        await client.result("t")
    with pytest.raises(ProtocolError, match="no result"):
        await client.wait("t")


async def test_a_refusal_of_the_connection_ends_what_waits(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = lambda plane, peer, op: peer.refuse(0, ProtocolError("speak version 2"))
    with pytest.raises(ProtocolError, match="speak version 2"):
        await client.run("s", input="x")


async def test_a_control_plane_that_stops_is_waited_for(plane: FakeControlPlane, client: Client) -> None:
    def stopping(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        peer.refuse(0, ShuttingDownError("stopping"))
        plane.handle = answer

    plane.handle = stopping
    assert await client.run("s", input="x") == "X"
    assert len(plane.paths) == 2


async def test_a_submission_that_meets_the_stop_is_made_again(plane: FakeControlPlane, client: Client) -> None:
    def stopping(fake: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        fake.handle = answer
        peer.refuse(op.request, ShuttingDownError("the control plane is stopping"))

    plane.handle = stopping
    assert await client.run("s", input="x", task_id="t") == "X"
    first, second = (op.definition for op in plane.ops if isinstance(op, Submit))
    assert first == second
    assert len(plane.peers) == 2


async def test_a_refusal_without_a_document_is_told(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = lambda plane, peer, op: peer.reply(Refused(op.request, b"{"))
    with pytest.raises(ProtocolError):
        await client.run("s", input="x")


async def test_a_defect_in_taking_a_reply_ends_what_waits(
    plane: FakeControlPlane, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr("llama_deploy.connections.requests.Call.take", broken)
    with pytest.raises(LlamaDeployError, match="ZeroDivisionError"):
        await client.run("s", input="x")


async def test_a_defect_in_connecting_ends_what_waits(
    plane: FakeControlPlane, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ImportError("the proxy needs a library that is not there")

    with monkeypatch.context() as patch:
        patch.setattr("llama_deploy.connections.websocket.WebSocketTransport.connect", broken)
        with pytest.raises(LlamaDeployError, match="a library that is not there"):
            await client.run("s", input="x", timeout_s=DEADLINE_S)
    assert await client.run("s", input="x") == "X"


async def test_closing_ends_a_submission_that_waits_until_there_is_room(plane: FakeControlPlane) -> None:
    full = msgspec.json.encode(QueueFullError("full", retry_after_s=3600).to_problem())

    def refuse(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        assert isinstance(op, Submit)
        peer.reply(Refused(op.request, full))

    plane.handle = refuse
    client = Client(plane.url, timeout_s=math.inf)
    submitting = asyncio.ensure_future(client.submit("s", input="x"))
    await eventually(lambda: client._connection._closing._waiters)
    await client.close()
    with pytest.raises(ConnectionLostError, match="closed"):
        await asyncio.wait_for(submitting, DEADLINE_S)


async def test_closing_ends_what_waits(plane: FakeControlPlane) -> None:
    plane.handle = silent
    client = Client(plane.url)
    running = asyncio.ensure_future(client.run("s", input="x", task_id="t"))
    await eventually(lambda: plane.tasks)
    await client.close()
    await client.close()
    with pytest.raises(ConnectionLostError, match="closed while it waited"):
        await running
    with pytest.raises(ConnectionLostError, match="this client is closed"):
        await client.submit("s", input="x")


async def test_closing_stops_reconnecting(plane: FakeControlPlane) -> None:
    plane.handle = silent
    client = Client(plane.url)
    running = asyncio.ensure_future(client.run("s", input="x"))
    await eventually(lambda: plane.tasks)
    await plane.stop()
    await client.close()
    with pytest.raises(ConnectionLostError):
        await running
    assert [task for task in asyncio.all_tasks() if "Connection" in repr(task.get_coro())] == []


async def test_closing_while_it_connects(plane: FakeControlPlane) -> None:
    client = Client(plane.url)
    running = asyncio.ensure_future(client.run("s", input="x"))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(ConnectionLostError):
        await running


def test_one_client_serves_one_loop(free_port: int) -> None:
    client = Client(f"http://127.0.0.1:{free_port}")
    with pytest.raises(CannotReachError):
        asyncio.run(client.submit("s", input="x"))
    with pytest.raises(SettingError, match="two event loops"):
        asyncio.run(client.submit("s", input="x"))


async def test_what_was_forgotten_is_not_asked_again(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = silent
    running = asyncio.ensure_future(client.run("s", input="x", task_id="kept"))
    gone = asyncio.ensure_future(client.run("s", input="x", task_id="gone"))
    await eventually(lambda: len(plane.tasks) == 2)
    gone.cancel()
    await eventually(lambda: isinstance(plane.ops[-1], Forget))
    plane.peers[0].drop()
    await eventually(lambda: isinstance(plane.ops[-1], Wait))
    assert len(plane.peers) == 2
    assert plane.ops[-1] == Wait(1, "kept")
    running.cancel()
