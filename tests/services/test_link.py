"""The link of an instance, against a control plane that misbehaves: it stays, comes back, and ends when it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.support import DEADLINE_S, eventually
from websockets.asyncio.server import ServerConnection, serve

from llama_deploy import Deployment
from llama_deploy.errors import CannotReachError, InvalidRequestError, ProtocolError, SettingError
from llama_deploy.messages.frames import (
    Disowned,
    Goodbye,
    Heartbeat,
    Hello,
    InstanceOp,
    Refused,
    Welcome,
    decode_instance_frame,
    encode_frame,
)
from llama_deploy.services import Service, StepContext, line, link, serve_services, service
from llama_deploy.services.link import instance_url
from llama_deploy.types import ServiceDefinition, TaskResult

HEARTBEAT_S = 0.02
Behaviour = Callable[["Plane", ServerConnection], Awaitable[None]]


@service
async def shout(text: str) -> str:
    """Upper case."""
    return text.upper()


class Plane:
    """What an instance connects to. It does to each connection what `behave` says."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.connections = 0
        self.said: list[InstanceOp] = []
        self.url = ""

    async def serve(self, socket: ServerConnection) -> None:
        self.connections += 1
        await self.behave(self, socket)

    async def listen(self, socket: ServerConnection, *, answer: bool = True) -> None:
        """Be a control plane that works, until the instance leaves."""
        async for data in socket:
            assert isinstance(data, bytes)
            operations = decode_instance_frame(data)
            self.said.extend(operations)
            for operation in operations:
                if isinstance(operation, Hello):
                    await socket.send(encode_frame([Welcome(HEARTBEAT_S, 50 * HEARTBEAT_S, [])]))
                elif isinstance(operation, Heartbeat) and answer:
                    await socket.send(encode_frame([Disowned([])]))

    def heard(self, kind: type) -> int:
        return sum(isinstance(operation, kind) for operation in self.said)


async def works(plane: Plane, socket: ServerConnection) -> None:
    await plane.listen(socket)


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[tuple[Plane, asyncio.Task[bool], asyncio.Event]]:
    """An instance of a control plane that behaves so."""
    plane = Plane(behave)
    async with serve(plane.serve, "127.0.0.1", 0, compression=None) as server:
        plane.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        stop = asyncio.Event()
        work = asyncio.create_task(
            serve_services([shout], control_plane_url=plane.url, instance_id="i", drain_timeout_s=1.0, stop=stop)
        )
        try:
            yield plane, work, stop
        finally:
            stop.set()
            await asyncio.gather(work, return_exceptions=True)


async def test_it_says_hello_lives_and_says_goodbye() -> None:
    async with serving(works) as (plane, work, stop):
        await eventually(lambda: plane.heard(Heartbeat) >= 3)
        stop.set()
        assert await work is True
    assert isinstance(plane.said[0], Hello)
    assert isinstance(plane.said[-1], Goodbye)
    assert plane.connections == 1


@pytest.mark.parametrize(
    "rubbish",
    ["text", b"\xc1", b"\x91" * 10_000, b"", encode_frame([["Nonsense"]])],
    ids=["text", "no msgpack", "nested deeply", "empty", "no operation"],
)
async def test_rubbish_ends_the_connection_and_not_the_instance(rubbish: str | bytes) -> None:
    async def misbehave(plane: Plane, socket: ServerConnection) -> None:
        if plane.connections == 1:
            await socket.send(rubbish)
            await socket.wait_closed()
        else:
            await plane.listen(socket)

    async with serving(misbehave) as (plane, work, _):
        await eventually(lambda: plane.heard(Heartbeat) >= 1)
        assert not work.done()


async def test_a_frame_without_operations_means_nothing() -> None:
    async def misbehave(plane: Plane, socket: ServerConnection) -> None:
        await socket.send(encode_frame([]))
        await plane.listen(socket)

    async with serving(misbehave) as (plane, _, _):
        await eventually(lambda: plane.heard(Heartbeat) >= 1)
        assert plane.connections == 1


async def test_a_control_plane_that_falls_silent_is_left(caplog: pytest.LogCaptureFixture) -> None:
    async def fall_silent(plane: Plane, socket: ServerConnection) -> None:
        await plane.listen(socket, answer=plane.connections > 1)

    async with serving(fall_silent) as (plane, work, _):
        await eventually(lambda: plane.connections == 2)
        await eventually(lambda: plane.heard(Hello) == 2)
        beats = plane.heard(Heartbeat)
        await eventually(lambda: plane.heard(Heartbeat) > beats + 10)
        assert plane.connections == 2
        assert not work.done()
    assert "the control plane is silent" in caplog.text


async def test_an_instance_that_stood_still_itself_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[line.Line] = []
    keep_connected = line.Line.keep_connected

    async def kept(self: line.Line) -> None:
        lines.append(self)
        await keep_connected(self)

    monkeypatch.setattr(line.Line, "keep_connected", kept)
    async with serving(works) as (plane, _, _):
        await eventually(lambda: plane.heard(Heartbeat) >= 3)
        going_on, before = threading.Event(), plane.heard(Heartbeat)
        lines[0]._loop.call_soon_threadsafe(going_on.wait, 3 * 50 * HEARTBEAT_S)  # three leases
        await asyncio.to_thread(going_on.wait, 2 * 50 * HEARTBEAT_S)
        going_on.set()
        await eventually(lambda: plane.heard(Heartbeat) > before + 3)
        assert plane.connections == 1


async def test_a_control_plane_that_never_says_a_word_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def say_nothing_at_first(plane: Plane, socket: ServerConnection) -> None:
        if plane.connections == 1:
            await socket.wait_closed()
        else:
            await plane.listen(socket)

    monkeypatch.setattr(line, "WELCOME_TIMEOUT_S", 0.5)
    async with serving(say_nothing_at_first) as (plane, work, _):
        await eventually(lambda: plane.heard(Heartbeat) >= 3)
        assert plane.connections == 2
        assert not work.done()
    assert "the control plane does not answer" in caplog.text


async def test_a_control_plane_that_drops_every_connection_is_not_hammered() -> None:
    async def drop(plane: Plane, socket: ServerConnection) -> None:
        await socket.close()

    async with serving(drop) as (plane, work, stop):
        began = time.monotonic()
        await eventually(lambda: plane.connections >= 5)
        assert time.monotonic() - began > 0.3, "the pauses grow"
        stop.set()
        assert await work is True, "it held nothing"


async def test_who_is_refused_says_so_and_ends() -> None:
    async def refuse(plane: Plane, socket: ServerConnection) -> None:
        error = InvalidRequestError("instance_id 'i' cannot be used", why="somebody has it", fix="take another")
        await socket.send(encode_frame([Refused(0, msgspec.json.encode(error.to_problem()))]))
        await socket.close()

    async with serving(refuse) as (plane, work, _):
        with pytest.raises(ProtocolError) as caught:
            await asyncio.wait_for(work, DEADLINE_S)
        assert (caught.value.what, caught.value.why) == ("instance_id 'i' cannot be used", "somebody has it")
        assert caught.value.fix == "take another"
        assert plane.connections == 1


async def test_an_attempt_to_connect_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_TIMEOUT_S", 1e6)  # so that nothing but the end ends the attempt
    reached = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        stop = asyncio.Event()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        work = asyncio.create_task(serve_services([shout], control_plane_url=url, stop=stop))
        await reached.wait()
        stop.set()
        assert await asyncio.wait_for(work, DEADLINE_S) is True


async def test_who_does_not_want_to_wait_for_ever_is_told(free_port: int) -> None:
    with pytest.raises(CannotReachError) as caught:
        await serve_services([shout], control_plane_url=f"http://127.0.0.1:{free_port}", connect_timeout_s=0.2)
    assert str(free_port) in caught.value.what
    assert "Connect call failed" in caught.value.why


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:1", "ws://h:1/v1/connect/instance"),
        ("https://h/", "wss://h/v1/connect/instance"),
        ("ws://h:1", "ws://h:1/v1/connect/instance"),
    ],
)
def test_the_address_of_a_control_plane(url: str, address: str) -> None:
    assert instance_url(url) == address


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(SettingError):
        instance_url(url)


async def test_an_instance_that_is_told_to_leave_finishes_what_it_holds_in_no_hurry() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @service
    async def slow() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    async with Deployment(store=":memory:", port=0, quiet=True) as deployment:
        serving = asyncio.create_task(
            serve_services([slow], control_plane_url=deployment.url, instance_id="i", drain_timeout_s=0.0)
        )
        task_id = await deployment.submit("slow", wait_for_service=True)
        await begun.wait()
        view = await deployment.client.drain_instance("slow", "i")
        assert (view.instance_id, view.running) == ("i", 1)
        await eventually(lambda: deployment.plane.views.service("slow").state == "draining")
        other = await deployment.submit("slow")
        assert not serving.done()
        go_on.set()
        assert await serving is True
        assert await deployment.client.result(task_id) == "done"
        assert (
            await deployment.client.get_task(other)
        ).waiting_for == 'nobody serves "slow" (no instance of it is connected)'


async def test_of_several_urls_any_may_be_down(free_port: int) -> None:
    plane, ready, stop = Plane(works), asyncio.Event(), asyncio.Event()
    async with serve(plane.serve, "127.0.0.1", 0, compression=None) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        urls = f"http://127.0.0.1:{free_port}, {url}"
        serving = serve_services([shout], control_plane_url=urls, on_ready=ready.set, stop=stop, handle_signals=False)
        instance = asyncio.create_task(serving)
        async with asyncio.timeout(DEADLINE_S):
            await ready.wait()
            assert plane.heard(Hello) == 1
            stop.set()
            assert await instance


@pytest.mark.parametrize("ended_by", ["its time is over", "it is to stop"])
async def test_what_is_not_finished_in_time_goes_to_others(ended_by: str) -> None:
    begun = asyncio.Event()

    @service
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    stop = asyncio.Event()
    async with Deployment(store=":memory:", port=0, quiet=True) as deployment:
        url = deployment.url
        serving = asyncio.create_task(
            serve_services([endless], control_plane_url=url, instance_id="i", drain_timeout_s=0.0, stop=stop)
        )
        task_id = await deployment.submit("endless", wait_for_service=True)
        await begun.wait()
        await deployment.client.drain_instance(
            "endless", "i", timeout_s=0.0 if ended_by == "its time is over" else None
        )
        if ended_by == "it is to stop":
            stop.set()
        assert await serving is False
        entry = await deployment.plane.engine.cache.get(task_id)
        await eventually(lambda: next(iter(entry.open.values())).attempt == 2)


class Owner(Service):
    """Has something to be let go of."""

    def __init__(self, name: str = "owner", *, broken: bool = False) -> None:
        self.definition = ServiceDefinition(service_name=name, description="Owns.")
        self.broken = broken
        self.heard: list[str] = []
        self.begun = asyncio.Event()

    async def start(self) -> None:
        self.heard.append("start")
        if self.broken:
            raise ZeroDivisionError

    async def stop(self) -> None:
        self.heard.append("stop")

    async def run(self, context: StepContext) -> TaskResult:
        self.heard.append("run")
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.heard.append(f"end of {context.step_id}")
        raise AssertionError


@pytest.mark.parametrize("leaving", [False, True])
async def test_an_instance_that_is_cancelled_leaves_nothing_running(*, leaving: bool) -> None:
    before = asyncio.all_tasks()
    async with Deployment(store=":memory:", port=0, quiet=True) as deployment:
        owner = Owner()
        serving = asyncio.create_task(
            serve_services([owner], control_plane_url=deployment.url, instance_id="i", handle_signals=False)
        )
        task_id = await deployment.submit("owner", wait_for_service=True)
        await owner.begun.wait()
        if leaving:
            await deployment.client.drain_instance("owner", "i")
            await eventually(lambda: deployment.plane.views.service("owner").state == "draining")
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await deployment.client.close()
    await eventually(lambda: asyncio.all_tasks() <= before)
    assert owner.heard == ["start", "run", f"end of {task_id}:1", "stop"]


async def test_an_instance_that_cannot_serve_stops_what_it_has_started(free_port: int) -> None:
    url, owner = f"http://127.0.0.1:{free_port}", Owner()
    with pytest.raises(CannotReachError):
        await serve_services([owner], control_plane_url=url, connect_timeout_s=0.0, handle_signals=False)
    assert owner.heard == ["start", "stop"]
    owner = Owner()
    with pytest.raises(SettingError):
        await serve_services([owner], control_plane_url="nowhere", handle_signals=False)
    assert owner.heard in ([], ["start", "stop"])
    owner, broken = Owner(), Owner("broken", broken=True)
    with pytest.raises(ZeroDivisionError):
        await serve_services([owner, broken], control_plane_url=url, handle_signals=False)
    assert (owner.heard, broken.heard) == (["start", "stop"], ["start"])
