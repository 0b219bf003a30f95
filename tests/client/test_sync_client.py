"""The blocking client: the same methods as the async one, from any thread, also where a loop is running."""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import threading
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.client.fake_control_plane import FakeControlPlane, FakeTask, silent
from tests.support import DEADLINE_S

from llama_deploy.client import Client, StreamEvent, SyncClient
from llama_deploy.client.portal import Portal
from llama_deploy.errors import CannotReachError, ConnectionLostError, TaskNotFoundError


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane on a loop of its own: blocking code leaves it none."""
    portal = Portal("fake-control-plane")
    fake = FakeControlPlane()
    portal.call(fake.start())
    yield fake
    portal.call(fake.stop())
    portal.close()
    portal.join()


@pytest.fixture
def client(plane: FakeControlPlane) -> Iterator[SyncClient]:
    with SyncClient(plane.url, timeout_s=DEADLINE_S, reconnect_timeout_s=DEADLINE_S) as made:
        yield made


def public(cls: type) -> dict[str, Any]:
    """Its public methods, those of its parts included."""
    found = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    return {name: found[name] for name in sorted(found) if callable(found[name]) and not name.startswith("_")}


def blocking(annotation: Any) -> Any:
    """The return type of the blocking method of a method that returns this."""
    if typing.get_origin(annotation) is collections.abc.AsyncIterator:
        return collections.abc.Iterator[typing.get_args(annotation)]  # type: ignore[misc]
    return annotation


def test_the_methods_are_the_same() -> None:
    assert list(public(SyncClient)) == list(public(Client))
    assert inspect.signature(SyncClient) == inspect.signature(Client)


@pytest.mark.parametrize("name", public(Client))
def test_the_signatures_are_the_same(name: str) -> None:
    theirs, ours = getattr(Client, name), getattr(SyncClient, name)
    assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters
    assert typing.get_type_hints(ours)["return"] == blocking(typing.get_type_hints(theirs)["return"])
    assert not inspect.iscoroutinefunction(ours)
    overloads = [[inspect.signature(o) for o in typing.get_overloads(f)] for f in (theirs, ours)]
    assert overloads[0] == overloads[1]


def test_run_submit_and_result(client: SyncClient) -> None:
    assert client.run("shout", text="a") == '{"TEXT":"A"}'
    task_id = client.submit("shout", input="b")
    assert client.result(task_id, output_type=str) == "B"
    assert client.wait(task_id).output == "B"
    assert len(client.submit_many("shout", (str(number) for number in range(5)))) == 5
    with pytest.raises(TaskNotFoundError):
        client.result("nobody")


def test_streams_are_iterators(plane: FakeControlPlane, client: SyncClient, task: FakeTask) -> None:
    assert list(client.stream("t", first=8)) == [StreamEvent(8, {"n": 8}), StreamEvent(9, {"n": 9})]
    stream = client.stream("t")
    assert next(stream).index == 0
    del stream  # left half-way
    assert client.result("t") == [1, 2]


def test_several_threads_share_one_connection(plane: FakeControlPlane, client: SyncClient) -> None:
    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(lambda n: client.run("s", input=f"n{n}"), range(200)))
    assert outputs == [f"N{number}" for number in range(200)]
    assert len(plane.peers) == 1


async def test_it_works_where_a_loop_is_running(client: SyncClient) -> None:
    assert asyncio.get_running_loop().is_running()
    assert client.run("s", input="in a notebook") == "IN A NOTEBOOK"


def test_closing_wakes_other_threads(plane: FakeControlPlane) -> None:
    asked = threading.Event()

    def hold(plane: FakeControlPlane, peer: Any, op: Any) -> None:
        silent(plane, peer, op)
        asked.set()

    plane.handle = hold
    client = SyncClient(plane.url)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.run, "s", input="x")
        assert asked.wait(DEADLINE_S)
        client.close()
        with pytest.raises(ConnectionLostError, match="closed"):
            waiting.result(5)
    client.close()
    with pytest.raises(ConnectionLostError, match="closed"):
        client.run("s", input="x")


def test_closing_wakes_whoever_waits_for_anything() -> None:
    portal, begun = Portal("closed"), threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(portal.call, wait())
        assert begun.wait(DEADLINE_S)
        portal.close()
        with pytest.raises(ConnectionLostError, match="closed"):
            waiting.result(DEADLINE_S)
    portal.join()


def test_a_call_that_begins_while_another_thread_closes_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    portal, real = Portal("closed"), asyncio.run_coroutine_threadsafe
    closing = threading.Thread(target=portal.close)

    def late(coroutine: Any, loop: asyncio.AbstractEventLoop) -> Any:
        closing.start()
        if not portal._lock._is_owned():  # type: ignore[attr-defined]  # else it waits for this call
            closing.join()
            portal.join()
        return real(coroutine, loop)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", late)
    with pytest.raises(ConnectionLostError, match="closed"):
        portal.call(asyncio.Event().wait())
    closing.join()
    portal.join()


def test_two_may_close_a_client_at_once(plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    client = SyncClient(plane.url)
    with monkeypatch.context() as patch:
        patch.setattr(Portal, "closed", property(lambda portal: bool(portal.close())))  # another one, just then
        client.close()
    assert client._portal.closed


def test_an_interrupt_gives_up_the_wait_only(
    plane: FakeControlPlane, client: SyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.run_coroutine_threadsafe
    plane.handle = silent
    canceled = threading.Event()

    def interrupted(coroutine: Any, loop: asyncio.AbstractEventLoop) -> Any:
        future = real(coroutine, loop)
        future.add_done_callback(lambda done: canceled.set() if done.cancelled() else None)
        monkeypatch.setattr(future, "result", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        return future

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.run("s", input="x")
    assert canceled.wait(DEADLINE_S)


def test_a_client_that_nobody_closes_leaves_no_thread(free_port: int) -> None:
    client = SyncClient(f"http://127.0.0.1:{free_port}")
    with pytest.raises(CannotReachError):
        client.run("s", input="x")
    portal = client._portal
    assert portal._thread is not None
    assert portal._thread.is_alive()
    del client
    gc.collect()
    portal.join()
    assert not portal._thread.is_alive()


def test_no_thread_before_the_first_call() -> None:
    before = threading.active_count()
    with SyncClient():
        assert threading.active_count() == before
