"""What clients do while processes crash: small pieces of work that may be begun again at any moment.

Each work is a coroutine of a client and a folder. It uses task ids of its own, so whoever begins it again finds the
same tasks; it repeats whatever an outage interrupted, asserts its outcomes, and returns the states in which its tasks
have to be at the end. The services are those of `service_program.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tests.support import PROCESS_S, eventually

from llama_deploy.client import Client, StreamEvent
from llama_deploy.errors import (
    CannotReachError,
    ConnectionLostError,
    ForwardingError,
    NoInputExpectedError,
    NoLeaderError,
    SessionNotFoundError,
    ShuttingDownError,
    StoreUnavailableError,
    TaskEndedError,
    TaskNotFoundError,
)
from llama_deploy.types import RetryPolicy, TaskOptions

Value = TypeVar("Value")
Work = Callable[[Client, Path], Awaitable[dict[str, str]]]

OUTAGES = (
    CannotReachError,
    ConnectionLostError,
    ForwardingError,
    NoLeaderError,
    ShuttingDownError,
    StoreUnavailableError,
)
"""What a client is told while the control plane is away. Asking again is the answer to each."""


async def insist(call: Callable[[], Awaitable[Value]]) -> Value:
    """Ask again through outages, until there is an answer."""

    async def attempt() -> tuple[Value] | None:
        try:
            return (await call(),)
        except OUTAGES:
            return None

    answer = await eventually(attempt, PROCESS_S)
    assert answer is not None
    return answer[0]


async def _run(client: Client, service: str, task_id: str, **arguments: Any) -> Any:
    return await insist(lambda: client.run(service, task_id=task_id, wait_for_service=True, **arguments))


async def hops(client: Client, _: Path) -> dict[str, str]:
    """Tasks of one step, some of which fail at first."""
    doubled = [_run(client, "double", f"double-{number}", number=number) for number in range(6)]
    flaky = [_run(client, "flaky", f"flaky-{number}", number=number) for number in range(6)]
    assert await asyncio.gather(*doubled) == [number * 2 for number in range(6)]
    assert await asyncio.gather(*flaky) == list(range(6))
    return {f"{name}-{number}": "completed" for name in ("double", "flaky") for number in range(6)}


async def looked_at(client: Client, _: Path) -> dict[str, str]:
    """Tasks that are asked about over HTTP: so many that each of two control planes leads some."""
    task_ids = [f"looked-at-{number}" for number in range(16)]
    for task_id in task_ids:
        assert await _run(client, "double", task_id, number=3) == 6
        view = await insist(lambda task_id=task_id: client.get_task(task_id))  # type: ignore[misc]
        assert view.state.value == "completed"
    return dict.fromkeys(task_ids, "completed")


async def slow(client: Client, _: Path) -> dict[str, str]:
    """Tasks whose step takes longer than a moment."""
    await asyncio.gather(*(_run(client, "double", f"slow-{number}", number=1, seconds=0.4) for number in range(3)))
    return {f"slow-{number}": "completed" for number in range(3)}


async def streams(client: Client, folder: Path) -> dict[str, str]:
    """A task that streams, followed while it runs and read again afterwards."""
    events = 40
    (folder / "open").touch()
    await _streamed(client, folder, "stream", events)
    return {"stream": "completed"}


async def many_streams(client: Client, folder: Path) -> dict[str, str]:
    """Tasks that stream at the same time: so many that each of two control planes leads some."""
    (folder / "open").touch()
    task_ids = [f"stream-{number}" for number in range(16)]
    await asyncio.gather(*(_streamed(client, folder, task_id, 20) for task_id in task_ids))
    return dict.fromkeys(task_ids, "completed")


async def _streamed(client: Client, folder: Path, task_id: str, events: int) -> None:
    """Follow a stream through outages: it is what is read again, and the last attempt's part is whole."""
    task = {"events": events, "folder": str(folder)}
    await insist(lambda: client.submit("tell", input=task, task_id=task_id, wait_for_service=True))
    seen: list[StreamEvent] = []
    read: list[StreamEvent] = []

    async def follow() -> None:
        async for event in client.stream(task_id, first=len(seen)):
            seen.append(event)  # noqa: PERF401 - what was seen before an outage counts

    async def read_again() -> None:
        read[:] = [event async for event in client.stream(task_id)]

    await insist(follow)
    assert [event.index for event in seen] == list(range(len(seen)))
    await insist(read_again)
    assert read == seen
    last = max(event.data["attempt"] for event in seen)
    told = [event.data["number"] for event in seen if event.data["attempt"] == last and "number" in event.data]
    assert told == list(range(events))


async def people(client: Client, _: Path) -> dict[str, str]:
    """Tasks that wait for a person: parked, and asking twice while they run."""
    assert await _answered(client, "person", "parked", "shall we?") == "on: shall we?"
    assert await _answered(client, "asks", "asking", "1") == ["on: first", "on: second"]
    return {"parked": "completed", "asking": "completed"}


async def _answered(client: Client, service: str, task_id: str, text: str) -> object:
    """Submit, and answer every question by repeating it, until the task has ended."""
    await insist(lambda: client.submit(service, input=text, task_id=task_id, wait_for_service=True))

    async def ended() -> bool:
        view = await client.get_task(task_id)
        if view.state.value == "input_required":
            try:
                await client.send_input(task_id, f"on: {view.prompt['prompt']}")  # type: ignore[index]
            except (NoInputExpectedError, TaskEndedError):
                return False  # it was taken before, and nobody heard
        return view.ended_at is not None

    await eventually(lambda: insist(ended), PROCESS_S)
    return await insist(lambda: client.result(task_id))


async def files(client: Client, _: Path) -> dict[str, str]:
    """Tasks that take a content of several parts, and make a larger one."""

    async def one(number: int) -> None:
        data = bytes([number]) * 300_000
        given = await insist(lambda: client.upload(data))
        made = await _run(client, "repeat", f"file-{number}", data=given, times=3)
        assert await insist(lambda: client.read(made)) == data * 3

    await asyncio.gather(*(one(number) for number in range(3)))
    return {f"file-{number}": "completed" for number in range(3)}


async def cancels(client: Client, folder: Path) -> dict[str, str]:
    """A task that runs until it is canceled."""
    await insist(lambda: client.submit("gate", folder=str(folder / "shut"), task_id="canceled", wait_for_service=True))
    view = await insist(lambda: client.cancel("canceled", reason="enough"))
    assert view.state.value == "canceled"
    return {"canceled": "canceled"}


async def sessions(client: Client, _: Path) -> dict[str, str]:
    """A session is created, and has a task."""
    await insist(lambda: client.create_session("session"))
    await _run(client, "double", "of-a-session", number=2, session_id="session")
    assert (await insist(lambda: client.get_session("session"))).task_count == 1
    return {"of-a-session": "completed"}


async def recurs(client: Client, folder: Path) -> dict[str, str]:
    """A schedule with four times, a second apart: there is one task for each of them and no other."""
    began = folder / "recurs"
    if not began.exists():
        began.write_text(str(int(time.time()) + 1))
    begin = float(began.read_text())
    schedule = {
        "every_s": 1,
        "start_at": begin,
        "end_at": begin + 3,
        "catch_up": "all",
        "overlap": "allow",
        "service": "double",
        "input": {"number": 4},
    }
    await insist(lambda: client.put_schedule("recurs", schedule))
    task_ids = [f"recurs@{datetime.fromtimestamp(begin + number, UTC):%Y-%m-%dT%H:%M:%SZ}" for number in range(4)]

    async def result_of(task_id: str) -> Any:
        async def once() -> tuple[Any] | None:
            try:
                return (await client.result(task_id),)
            except (*OUTAGES, TaskNotFoundError):
                return None

        return (await eventually(once, PROCESS_S))[0]

    assert await asyncio.gather(*(result_of(task_id) for task_id in task_ids)) == [8] * 4

    async def over() -> bool:
        return (await insist(lambda: client.get_schedule("recurs"))).next_at is None

    assert await eventually(over, PROCESS_S)
    assert (await insist(lambda: client.get_schedule("recurs"))).submitted == 4
    return dict.fromkeys(task_ids, "completed")


async def held(client: Client, folder: Path) -> dict[str, str]:
    """A task that an instance holds until everything has been restarted (`open_gate`)."""
    await insist(lambda: client.submit("gate", folder=str(folder / "later"), task_id="held", wait_for_service=True))
    assert await insist(lambda: client.result("held")) == "went through"
    return {"held": "completed"}


HELD = 16
"""How many tasks `all_held` has: by chance, none of two control planes leads all of them."""


async def all_held(client: Client, folder: Path) -> dict[str, str]:
    """Tasks that an instance holds until everything has been restarted: so many that each of two leads some."""
    task_ids = [f"held-{number}" for number in range(HELD)]

    async def one(task_id: str) -> None:
        later = str(folder / "later")
        await insist(lambda: client.submit("gate", folder=later, task_id=task_id, wait_for_service=True))
        assert await insist(lambda: client.result(task_id)) == "went through"

    await asyncio.gather(*(one(task_id) for task_id in task_ids))
    return dict.fromkeys(task_ids, "completed")


def open_gate(folder: Path) -> None:
    """Let what `held` or `all_held` submitted go through."""
    (folder / "later").mkdir(exist_ok=True)
    (folder / "later" / "open").touch()


async def remembers(client: Client, _: Path) -> dict[str, str]:
    """A task whose code has values remembered: what it returns is what is recorded."""
    kept = await _run(client, "keep", "remembers", count=5)

    async def recorded() -> list[object]:
        return [entry.value async for entry in client.history("remembers") if entry.kind == "remembered"]

    assert await insist(recorded) == kept
    return {"remembers": "completed"}


async def calls(client: Client, folder: Path) -> dict[str, str]:
    """Services that call others, and a task that is canceled while it waits for what it called."""
    assert await _run(client, "sum_of", "calling", count=3) == 6
    await insist(
        lambda: client.submit("calls_gate", folder=str(folder / "shut"), task_id="stopped", wait_for_service=True)
    )

    async def called() -> list[str]:
        return [entry.child async for entry in client.history("stopped") if entry.child is not None]

    (gated,) = await eventually(lambda: insist(called), PROCESS_S)
    await insist(lambda: client.cancel("stopped"))

    async def gated_is_canceled() -> bool:
        try:
            return (await client.get_task(gated)).state.value == "canceled"
        except TaskNotFoundError:  # it was not submitted before its caller was canceled
            return True

    await eventually(lambda: insist(gated_is_canceled), PROCESS_S)
    children = await insist(lambda: _children(client))
    assert len(children) in {3, 4}
    states = {task_id: "canceled" if task_id == gated else "completed" for task_id in children}
    return {"calling": "completed", "stopped": "canceled"} | states


async def _children(client: Client) -> list[str]:
    return [task.task_id async for task in client.list_tasks() if (task.origin or "").startswith("child:")]


async def erases(client: Client, _: Path) -> dict[str, str]:
    """A session is erased: nothing of it is found, its bytes are gone, and one record says so."""
    await insist(lambda: client.create_session("erased"))
    await _run(client, "double", "of-the-erased", number=1, session_id="erased")

    async def gone() -> bool:
        with contextlib.suppress(SessionNotFoundError):  # it was erased before, and nobody heard
            await client.erase_session("erased")
        return all(erasure.scrubbed for erasure in await client.list_erasures())

    await eventually(lambda: insist(gone), PROCESS_S)
    records = await insist(client.list_erasures)
    assert all(record.erased and record.session_id == "erased" for record in records)
    assert any(record.tasks == 1 for record in records)
    try:
        await insist(lambda: client.get_session("erased"))
    except SessionNotFoundError:
        return {}
    raise AssertionError("the session is there")


async def again(client: Client, folder: Path) -> dict[str, str]:
    """A task that fails, retried; one whose input is wrong, replayed with another one; a fork of what came of that."""
    soon = TaskOptions(run_timeout_s=0.2, retry=RetryPolicy(max_retries=0))
    shut = {"folder": str(folder / "shut")}
    await insist(lambda: client.submit("gate", input=shut, task_id="stuck", options=soon, wait_for_service=True))
    assert (await insist(lambda: client.wait("stuck"))).status == "failed"
    await insist(lambda: client.retry("stuck", new_task_id="retried"))
    assert (await insist(lambda: client.wait("retried"))).status == "failed"
    letters = (await insist(client.list_dead)).items
    assert {letter.task_id: letter.redriven for letter in letters} == {"stuck": "retried", "retried": None}
    await insist(lambda: client.submit("double", input={"number": "one"}, task_id="wrong", wait_for_service=True))
    assert (await insist(lambda: client.wait("wrong"))).status == "failed"
    await insist(lambda: client.replay("wrong", input={"number": 4}, new_task_id="replayed"))
    assert await insist(lambda: client.result("replayed")) == 8
    await insist(lambda: client.fork("replayed", 1, new_task_id="forked"))
    assert await insist(lambda: client.result("forked")) == 8
    failed, well = ("stuck", "retried", "wrong"), ("replayed", "forked")
    return dict.fromkeys(failed, "failed") | dict.fromkeys(well, "completed")


async def ages(client: Client, _: Path) -> dict[str, str]:
    """Tasks that are removed soon after they have ended."""
    await asyncio.gather(*(_run(client, "double", f"old-{number}", number=number) for number in range(4)))

    async def removed() -> bool:
        return [task async for task in client.list_tasks(service="double")] == []

    await eventually(lambda: insist(removed), PROCESS_S)
    return {}


WORKS: dict[str, Work] = {
    work.__name__: work
    for work in (
        hops,
        looked_at,
        slow,
        streams,
        many_streams,
        people,
        cancels,
        sessions,
        held,
        all_held,
        remembers,
        calls,
        erases,
        again,
        ages,
    )
}


async def keep_the_promise(client: Client, wanted: dict[str, str]) -> None:
    """Whatever crashed: these tasks and no others exist, each in its state, each with a history without a hole."""
    listed = {task.task_id: task.state.value async for task in client.list_tasks()}
    assert listed == wanted
    for task_id in wanted:
        entries = [entry async for entry in client.history(task_id, follow=True)]
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1)), task_id
        assert [entry.seq for entry in entries if entry.outcome is not None] == [len(entries)], task_id
        answered = [entry.step_id for entry in entries if entry.kind == "answered"]
        assert len(answered) == len(set(answered)), task_id
        sent = {message["step_id"] for entry in entries for message in entry.messages}
        assert set(answered) <= sent, task_id
        indices = [event.index async for event in client.stream(task_id)]
        assert indices == list(range(len(indices))), task_id
    try:
        await client.get_task("nobody")
    except TaskNotFoundError:
        return
    raise AssertionError("there is a task that nobody submitted")
