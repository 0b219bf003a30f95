"""The two WebSockets, abused: what cannot be meant is refused with its reason, and the server lives on."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.control_plane.http.conftest import Served
from tests.support import DEADLINE_S, eventually
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.client_gateway import ClientPort
from llama_deploy.control_plane.http import sockets
from llama_deploy.errors import QueueFullError
from llama_deploy.messages.frames import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Accepted,
    Answer,
    Credits,
    Ended,
    Events,
    Follow,
    Forget,
    Heartbeat,
    HeldStep,
    Hello,
    Items,
    Refused,
    StreamEnd,
    Submit,
    Subscribe,
    Wait,
    Welcome,
    decode_control_frame,
    decode_reply_frame,
    encode_frame,
)

PATHS = INSTANCE, CLIENT = "/v1/connect/instance", "/v1/connect/client"


def opened(url: str, path: str, **options: Any) -> connect:
    return connect(f"ws{url.removeprefix('http')}{path}", max_size=None, open_timeout=DEADLINE_S, **options)


async def replies(socket: ClientConnection, path: str) -> AsyncIterator[Any]:
    """Every operation until the other side closes."""
    decode = decode_control_frame if path.endswith("instance") else decode_reply_frame
    async with asyncio.timeout(DEADLINE_S):
        async for data in socket:
            assert isinstance(data, bytes)
            for operation in decode(data):
                yield operation


async def refusal(url: str, path: str, sent: str | bytes) -> dict[str, Any]:
    """What the other side says to this before it closes."""
    async with opened(url, path) as socket:
        await socket.send(sent)
        operations = [operation async for operation in replies(socket, path)]
    assert isinstance(operations[-1], Refused), operations
    assert operations[-1].request == 0
    problem: dict[str, Any] = json.loads(operations[-1].problem)
    return problem


@pytest.fixture(autouse=True)
async def _lives_on(served: Served, url: str) -> AsyncIterator[None]:
    """Whatever a test does, somebody else notices nothing, and nothing is left of it."""
    async with Client(url, timeout_s=DEADLINE_S) as other:
        assert await other.run("shout", text="before") == "BEFORE"
        yield
        assert await other.run("shout", text="after") == "AFTER"
    plane = served.deployment.plane
    await eventually(lambda: len(plane.clients.ports) <= 1)
    assert {len(entry.instances) for entry in plane.engine.registry.services.values()} == {1}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("sent", "what"),
    [
        ("text", "text was sent where frames are expected"),
        (b"", "what was sent is not a frame"),
        (b"\xc1", "what was sent is not a frame"),
        (b"\x00" * 1000, "what was sent is not a frame"),
        (encode_frame({"type": "Hello"}), "what was sent is not a frame"),
        (encode_frame([["Nonsense", 1]]), "what was sent is not a frame"),
        (encode_frame([["Submit"], ["Hello"]]), "what was sent is not a frame"),
        (b"\x91" * 100_000, "what was sent is not a frame"),
        (b"\x91\x93\xa4Wait\x01\xa2\xff\xfe", "what was sent is not a frame"),
        (encode_frame([Wait(0, "t")]), "what was sent is not a frame"),
        (encode_frame([Events("t", 1, -1, [b"1"])]), "what was sent is not a frame"),
        (encode_frame([Events("t:1", 1, 2**64 - 1, [b"1"])]), "what was sent is not a frame"),
        (b"\x91\x94\xa6Submit\x01\xc6\xff\xff\xff\xff", "what was sent is not a frame"),
    ],
    ids=lambda value: repr(value[-12:]),
)
async def test_what_is_no_frame(url: str, path: str, sent: str | bytes, what: str) -> None:
    problem = await refusal(url, path, sent)
    assert (problem["code"], problem["what"]) == ("LD304", what)


@pytest.mark.parametrize("path", PATHS)
async def test_random_bytes(url: str, path: str) -> None:
    chance = random.Random(7)
    valid = encode_frame([Submit(1, b"{}", True), Wait(2, "t"), Subscribe(3, "t", 0)])
    for _ in range(60):
        data = bytearray(valid if chance.random() < 0.5 else chance.randbytes(chance.randrange(1, 200)))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        async with opened(url, path) as socket:
            await socket.send(bytes(data))
            await socket.close()


@pytest.mark.parametrize("path", PATHS)
async def test_an_operation_of_the_other_role(url: str, path: str) -> None:
    mine = Wait(1, "t") if path.endswith("instance") else Heartbeat([])
    assert (await refusal(url, path, encode_frame([mine])))["code"] == "LD304"


@pytest.mark.parametrize("path", PATHS)
async def test_a_frame_that_is_too_large_ends_the_connection(url: str, path: str) -> None:
    async with opened(url, path) as socket:
        header = struct.pack("!BBQ", 0x82, 0x80 | 127, FRAME_BYTES_MAX + 1)
        socket.transport.write(header + b"\0\0\0\0" + b"\0" * 100_000)
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(DEADLINE_S):
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize("path", PATHS)
async def test_a_connection_that_breaks_off_in_the_middle_of_a_frame(url: str, path: str) -> None:
    async with opened(url, path) as socket:
        socket.transport.write(struct.pack("!BBH", 0x82, 0x80 | 126, 5000) + b"\0\0\0\0" + b"half")
        socket.transport.abort()


async def test_a_route_that_is_no_socket_and_a_socket_that_is_no_route(url: str) -> None:
    for path in ("/v1/connect/nothing", "/v1/tasks"):
        with pytest.raises(InvalidStatus) as caught:
            async with opened(url, path):
                pass
        assert caught.value.response.status_code in {403, 404}


async def test_a_page_of_another_site_cannot_connect(url: str) -> None:
    for path in PATHS:
        with pytest.raises(InvalidStatus) as caught:
            async with opened(url, path, origin="https://elsewhere.example"):
                pass
        assert caught.value.response.status_code == 403
        async with opened(url, path, origin=url):
            pass


async def test_a_client_of_another_protocol(url: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with opened(url, CLIENT + "?protocol=999"):
            pass
    answer = caught.value.response
    assert answer.status_code == 400
    assert answer.body is not None
    problem = json.loads(answer.body)
    assert problem["code"] == "LD304"
    assert problem["what"] == f"the client speaks protocol 999, this control plane {PROTOCOL_VERSION}"


# --- instances --------------------------------------------------------------------------------------------------------


def hello(instance_id: str = "i", *, protocol: int = PROTOCOL_VERSION, services: Any = (), **rest: Any) -> Hello:
    encoded = services if isinstance(services, bytes) else json.dumps(services).encode()
    return Hello(protocol, instance_id, encoded, rest.get("held", []), 1, "host")


@pytest.mark.parametrize("first", [Heartbeat([]), Credits("shout", 5), Answer("t:1", 1, b"{}", 0.0, 0.0)])
async def test_an_instance_says_hello_first(url: str, first: Any) -> None:
    problem = await refusal(url, INSTANCE, encode_frame([first]))
    assert problem["what"] == "an instance says Hello once, as its first operation"


@pytest.mark.parametrize("protocol", [0, PROTOCOL_VERSION + 1, -1])
async def test_an_instance_of_another_protocol(url: str, protocol: int) -> None:
    problem = await refusal(url, INSTANCE, encode_frame([hello(protocol=protocol)]))
    assert problem["code"] == "LD304"
    assert f"the instance speaks protocol {protocol}, this control plane {PROTOCOL_VERSION}" in problem["what"]
    assert "same version" in problem["fix"]


@pytest.mark.parametrize(
    "services",
    [
        b"",
        b"nonsense",
        b"{}",
        b"\xff",
        b"[" * 10_000,
        [{}],
        [{"service_name": 5, "description": ""}],
        [{"service_name": "", "description": ""}],
        [{"service_name": "a/b", "description": ""}],
        [{"service_name": "a\0", "description": ""}],
        [{"service_name": "x" * 201, "description": ""}],
        [{"service_name": "s", "description": "", "run_timeout_s": "soon"}],
        b'[{"service_name": "s", "description": "", "run_timeout_s": NaN}]',
        [{"service_name": "s", "description": "", "run_timeout_s": -1}],
        [{"service_name": "s", "description": "", "concurrency": -1}],
    ],
    ids=lambda value: repr(value[:1] if isinstance(value, list) else value[:12]),
)
async def test_an_instance_whose_services_make_no_sense(served: Served, url: str, services: Any) -> None:
    problem = await refusal(url, INSTANCE, encode_frame([hello(services=services)]))
    assert problem["code"] == "LD201"
    assert "s" not in served.deployment.plane.engine.registry.services


@pytest.mark.parametrize("instance_id", ["", "x" * 201, "a\0b"])
async def test_an_instance_with_an_id_that_cannot_be_used(url: str, instance_id: str) -> None:
    assert (await refusal(url, INSTANCE, encode_frame([hello(instance_id)])))["what"].startswith("instance_id")


async def test_an_instance_answers_what_it_never_had(served: Served, url: str) -> None:
    sent = [
        hello(held=[HeldStep("nobody:1", 1), HeldStep("", 0), HeldStep("x" * 10_000, -1)]),
        Answer("nobody:1", 1, b"{}", 0.0, 0.0),
        Answer("", 1, b"\xff", 0.0, 0.0),
        Answer(":" * 50, 2**40, b"[" * 5000, -1.0, float("nan")),
        Credits("shout", 10**9),
        Heartbeat([HeldStep("nobody:1", 1)]),
    ]
    async with opened(url, INSTANCE) as socket:
        await socket.send(encode_frame(sent))
        said = replies(socket, INSTANCE)
        found = []
        async for operation in said:
            found.append(operation)
            if isinstance(operation, Welcome):
                break
    assert "nobody:1" in found[-1].disowned


# --- clients ----------------------------------------------------------------------------------------------------------


async def ask(url: str, *operations: Any, until: type) -> list[Any]:
    """Send operations; the replies up to the first of a type."""
    found = []
    async with opened(url, CLIENT) as socket:
        await socket.send(encode_frame(list(operations)))
        async for operation in replies(socket, CLIENT):
            found.append(operation)
            if isinstance(operation, until):
                return found
    raise AssertionError(f"no {until.__name__} in {found}")


@pytest.mark.parametrize(
    "definition",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        b'{"input": 5}',
        b'{"input": "\\ud800", "agent_id": "shout"}',
        b'{"input": "a", "agent_id": "a", "service_id": "b"}',
        b'{"input": "a", "agent_id": "shout", "task_id": "a\\u0000"}',
        b'{"input": "a", "agent_id": "shout", "session_id": ""}',
        b'{"input": "a", "agent_id": "shout", "metadata": {"a": 1}}',
    ],
    ids=lambda value: repr(value[:40]),
)
async def test_a_submission_that_makes_no_sense(served: Served, url: str, definition: bytes) -> None:
    (refused,) = await ask(url, Submit(7, definition, True), until=Refused)
    assert refused.request == 7, "the connection goes on"
    assert json.loads(refused.problem)["code"] == "LD201"
    assert served.deployment.plane.engine.cache.unfinished == 0


async def test_requests_about_nothing(url: str) -> None:
    for operation in (Wait(1, "nobody"), Subscribe(2, "", 0), Follow(3, "a/b", -5), Wait(4, "x" * 100_000)):
        (refused,) = await ask(url, operation, until=Refused)
        assert (refused.request, json.loads(refused.problem)["code"]) == (operation.request, "LD203")


async def test_numbers_that_make_no_sense(served: Served, url: str) -> None:
    await served.deployment.run("tell", events=3, task_id="t")
    for first in (-1, -(2**40)):
        found = await ask(url, Subscribe(1, "t", first), until=StreamEnd)
        assert found == [Items(1, 0, [b'{"n":0}', b'{"n":1}', b'{"n":2}']), StreamEnd(1)]
    assert await ask(url, Subscribe(1, "t", 2**60), until=StreamEnd) == [StreamEnd(1)]
    assert await ask(url, Follow(1, "t", 2**60), until=StreamEnd) == [StreamEnd(1)]


async def test_a_number_that_is_used_again_names_the_newer_request(served: Served, url: str) -> None:
    await served.deployment.submit("gate", name="g", task_id="g")
    await served.deployment.run("shout", text="a", task_id="t")
    entry = await served.deployment.plane.engine.cache.get("g")
    async with opened(url, CLIENT) as socket:
        await socket.send(encode_frame([Wait(1, "g"), Subscribe(2, "g", 0), Forget(9)]))
        await eventually(lambda: entry.ended_callbacks and entry.watchers)
        await socket.send(encode_frame([Wait(1, "t"), Subscribe(2, "t", 0)]))
        found = []
        async for operation in replies(socket, CLIENT):
            found.append(operation)
            if any(isinstance(o, Ended) for o in found) and StreamEnd(2) in found:
                break
        ended = next(operation for operation in found if isinstance(operation, Ended))
        assert ended.task_id == "t"
    await eventually(lambda: not entry.watchers)
    await eventually(lambda: not entry.ended_callbacks)


async def test_who_leaves_is_forgotten(served: Served, url: str) -> None:
    entry = None
    async with opened(url, CLIENT) as socket:
        body = msgspec.json.encode({"input": '{"name": "g"}', "agent_id": "gate", "task_id": "g"})
        await socket.send(encode_frame([Submit(1, body, True), Wait(2, "g")]))
        accepted = await anext(replies(socket, CLIENT))
        assert accepted == Accepted(1, "g")
        await socket.send(encode_frame([Subscribe(3, "g", 0), Follow(4, "g", 0)]))
        entry = await served.deployment.plane.engine.cache.get("g")
        await eventually(lambda: len(entry.watchers) == 2)
    await eventually(lambda: not entry.watchers and not entry.ended_callbacks)


async def test_one_client_too_many_is_refused_and_finds_room_when_another_one_leaves(
    served: Served, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    plane = served.deployment.plane
    most = len(plane.clients.ports) + 3
    plane.engine.settings = replace(plane.engine.settings, clients_max=most)
    async with Client(url, timeout_s=DEADLINE_S) as known, opened(url, CLIENT) as second, opened(url, CLIENT) as third:
        assert await known.run("shout", text="a") == "A"
        await eventually(lambda: len(plane.clients.ports) == most)
        with pytest.raises(InvalidStatus) as refused:
            await opened(url, CLIENT)
        answer = refused.value.response
        said = json.loads(answer.body)
        assert (answer.status_code, said["code"]) == (429, "LD209")
        assert said["details"] == {"setting": "clients_max", "limit": most}
        assert "clients_max" in said["fix"]
        assert answer.headers["retry-after"]
        async with Client(url, timeout_s=DEADLINE_S, wait_when_full=False) as other:
            with pytest.raises(QueueFullError, match=f"{most} clients are connected"):
                await other.run("shout", text="b")
            for socket in (second, third):  # the others are not harmed
                await socket.send(encode_frame([Wait(1, "nothing")]))
                assert isinstance(await anext(replies(socket, CLIENT)), Refused)
            assert await known.run("shout", text="c") == "C"
            await third.close()
            await eventually(lambda: len(plane.clients.ports) < most)
            assert await other.run("shout", text="b") == "B"
            assert len(plane.clients.ports) == most
        async with Client(url, timeout_s=DEADLINE_S) as patient:
            await eventually(lambda: len(plane.clients.ports) < most)
            async with opened(url, CLIENT) as last:
                await eventually(lambda: len(plane.clients.ports) == most)
                waits = asyncio.ensure_future(patient.run("shout", text="d"))
                await asyncio.wait([waits], timeout=0.2)
                assert not waits.done()
                await last.close()
            assert await waits == "D"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_many_clients_at_once_are_not_more_than_may_be(served: Served, url: str) -> None:
    plane = served.deployment.plane
    most = len(plane.clients.ports) + 2
    plane.engine.settings = replace(plane.engine.settings, clients_max=most)
    answers = await asyncio.gather(*(opened(url, CLIENT) for _ in range(20)), return_exceptions=True)
    connected = [socket for socket in answers if isinstance(socket, ClientConnection)]
    assert len(connected) == 2
    assert sum(isinstance(one, InvalidStatus) and one.response.status_code == 429 for one in answers) == 18
    for socket in connected:
        await socket.close()
    await eventually(lambda: len(plane.clients.ports) == most - 2)
    async with opened(url, CLIENT), opened(url, CLIENT):
        await eventually(lambda: len(plane.clients.ports) == most)


async def test_who_does_not_read_slows_its_own_stream_only(served: Served, url: str) -> None:
    events = 4000
    await served.deployment.run("tell", events=events, task_id="t")
    async with opened(url, CLIENT, max_queue=1) as socket:
        await socket.send(encode_frame([Subscribe(number, "t", 0) for number in range(100)]))
        async with Client(url, timeout_s=DEADLINE_S) as other:
            assert await other.run("shout", text="meanwhile") == "MEANWHILE"
        ended = 0
        async for operation in replies(socket, CLIENT):
            ended += isinstance(operation, StreamEnd)
            if ended == 100:
                break


async def _unread(plane: ControlPlane, socket: ClientConnection) -> ClientPort:
    """Have more sent to a client than it takes, which reads nothing of it."""
    await socket.send(encode_frame([Wait(1, "nothing")]))
    assert isinstance(await anext(replies(socket, CLIENT)), Refused)
    port = tuple(plane.clients.ports)[-1]
    socket.transport.pause_reading()
    _say(port, megabytes=40)
    sender = port._send.__self__  # type: ignore[attr-defined]
    await eventually(lambda: len(sender._frames) < 40)
    return port


def _say(port: ClientPort, *, megabytes: int) -> None:
    for number in range(megabytes):
        port.post(Ended(number, "t", "completed", b'"' + b"x" * 1_000_000 + b'"'))
        port.flush()


async def _read_to_the_end(socket: ClientConnection) -> None:
    while True:
        await asyncio.wait_for(socket.recv(), DEADLINE_S)


async def test_who_does_not_read_at_all_is_given_up(served: Served, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "UNREAD_BYTES_MAX", 60_000_000)
    plane = served.deployment.plane
    async with opened(url, CLIENT) as socket:
        port = await _unread(plane, socket)
        _say(port, megabytes=40)
        await eventually(lambda: port not in plane.clients.ports)
        socket.transport.resume_reading()
        with pytest.raises(ConnectionClosed):
            await _read_to_the_end(socket)


async def test_who_is_refused_and_does_not_read_that_is_waited_for_in_bounds(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "CLOSING_S", 0.1)
    plane = served.deployment.plane
    async with opened(url, CLIENT) as socket:
        port = await _unread(plane, socket)
        await socket.send("this is no frame")
        await eventually(lambda: port not in plane.clients.ports)
