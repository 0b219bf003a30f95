"""The clients against a real control plane: over its socket, and inside its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from tests.support import DEADLINE_S, eventually

from llama_deploy.apiserver import Deployment
from llama_deploy.client import Client, SyncClient
from llama_deploy.errors import (
    ConnectionLostError,
    InvalidRequestError,
    NoInputExpectedError,
    NonRetryableError,
    OutputTypeError,
    ServiceNotFoundError,
    ServiceUnknownError,
    SessionNotFoundError,
    TaskConflictError,
    TaskEndedError,
    TaskFailed,
    TaskNotFoundError,
)
from llama_deploy.services import HumanService, ServiceContext, service
from llama_deploy.types import TaskState

GATES: dict[str, asyncio.Event] = {}
"""What `hold` waits for, by the name that the test gave; the services run in the test's own process."""


class Count(BaseModel):
    words: int
    text: str


@service
async def shout(text: str) -> str:
    """Upper case."""
    return text.upper()


@service
async def count(text: str) -> Count:
    """The number of words."""
    return Count(words=len(text.split()), text=text)


@service
async def tell(context: ServiceContext, events: int) -> int:
    """Streams numbers."""
    for number in range(events):
        context.stream({"n": number})
    return events


@service
async def hold(gate: str) -> str:
    """Waits until the test lets it go on."""
    await GATES[gate].wait()
    return "let go"


@service
async def fail(text: str) -> str:
    """Fails for good."""
    raise NonRetryableError(f"cannot do {text}")


SERVICES = [shout, count, tell, hold, fail, HumanService()]


@pytest.fixture(params=["socket", "in process"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with Deployment(SERVICES, store=":memory:", port=0, quiet=True, drain_timeout_s=0.1) as deployment:
        if request.param == "socket":
            async with Client(deployment.url, timeout_s=DEADLINE_S) as made:
                yield made
        else:
            yield deployment.client


async def test_run_returns_what_the_service_returns(client: Client) -> None:
    assert await client.run("shout", text="hello") == "HELLO"
    assert await client.run("count", input={"text": "a b"}) == {"words": 2, "text": "a b"}
    found = await client.run("count", text="a b", output_type=Count)
    assert found == Count(words=2, text="a b")
    with pytest.raises(OutputTypeError):
        await client.run("count", text="a b", output_type=list[int])


async def test_many_at_once(client: Client) -> None:
    ids = await client.submit_many("shout", [{"text": f"n{number}"} for number in range(200)])
    assert await asyncio.gather(*map(client.result, ids)) == [f"N{number}" for number in range(200)]


async def test_a_failure_carries_the_remote_error(client: Client) -> None:
    with pytest.raises(TaskFailed) as caught:
        await client.run("fail", text="this", task_id="f")
    assert caught.value.task_id == "f"
    assert caught.value.error.message == "cannot do this"
    assert caught.value.error.code == "LD510"
    assert (await client.wait("f")).status == "failed"


async def test_arguments_that_do_not_fit_fail_the_task(client: Client) -> None:
    with pytest.raises(TaskFailed) as caught:
        await client.run("shout", wrong="x")
    assert caught.value.error.code == "LD505"


async def test_an_unknown_service_is_refused_with_the_names(client: Client) -> None:
    with pytest.raises(ServiceUnknownError) as caught:
        await client.run("shuot", text="x")
    assert "shout" in caught.value.details["known"]


async def test_the_same_task_id_is_the_same_task(client: Client) -> None:
    assert await client.run("shout", text="a", task_id="t") == "A"
    assert await client.run("shout", text="a", task_id="t") == "A"
    with pytest.raises(TaskConflictError):
        await client.run("shout", text="other", task_id="t")
    assert [task.task_id async for task in client.list_tasks(service="shout")] == ["t"]


async def test_an_idempotency_key_finds_the_first_task(client: Client) -> None:
    first = await client.submit("shout", text="a", idempotency_key="k")
    assert await client.submit("shout", text="a", idempotency_key="k") == first
    assert await client.run("shout", text="a", idempotency_key="k") == "A"


async def test_streams_live_and_again(client: Client) -> None:
    task_id = await client.submit("tell", events=500)
    live = [(event.index, event.data) async for event in client.stream(task_id)]
    assert live == [(number, {"n": number}) for number in range(500)]
    assert [event.index async for event in client.stream(task_id, first=490)] == list(range(490, 500))


async def test_history_by_pages_and_followed(client: Client) -> None:
    task_id = await client.submit("shout", text="a")
    followed = [entry async for entry in client.history(task_id, follow=True)]
    assert [entry.seq for entry in followed] == list(range(1, len(followed) + 1))
    assert followed[0].kind == "submitted"
    assert followed[-1].state is TaskState.COMPLETED
    assert [entry.seq async for entry in client.history(task_id)] == [entry.seq for entry in followed]
    assert [entry.seq async for entry in client.history(task_id, after=1, follow=True)] == list(
        range(2, len(followed) + 1)
    )


async def test_a_task_that_waits_is_canceled(client: Client) -> None:
    GATES["never"] = asyncio.Event()
    running = asyncio.ensure_future(client.run("hold", gate="never", task_id="h"))
    await eventually(lambda: _state(client, "h", TaskState.WORKING, TaskState.SUBMITTED))
    assert (await client.cancel("h", reason="enough")).state is TaskState.CANCELED
    with pytest.raises(TaskFailed, match="was canceled"):
        await running
    assert (await client.cancel("h")).state is TaskState.CANCELED
    done = await client.submit("shout", text="a")
    await client.wait(done)
    with pytest.raises(TaskEndedError):
        await client.cancel(done)


async def _state(client: Client, task_id: str, *states: TaskState) -> bool:
    try:
        return (await client.get_task(task_id)).state in states
    except TaskNotFoundError:
        return False


async def test_a_person_answers(client: Client) -> None:
    first = await client.submit("human", input="red or blue?")
    second = await client.submit("human", input="more?")
    await eventually(lambda: _state(client, first, TaskState.INPUT_REQUIRED))
    await eventually(lambda: _state(client, second, TaskState.INPUT_REQUIRED))
    assert (await client.get_task(first)).prompt["prompt"] == "red or blue?"  # type: ignore[index]
    await client.send_input(first, "blue")
    assert await client.result(first) == "blue"
    assert (await client.get_task(second)).state is TaskState.INPUT_REQUIRED
    with pytest.raises((NoInputExpectedError, TaskEndedError)):
        await client.send_input(first, "again")


async def test_lists_filters_and_pages(client: Client) -> None:
    ids = await client.submit_many("shout", [{"text": "a"}] * 5, session_id="s")
    await asyncio.gather(*map(client.wait, ids))
    page = await client.list_tasks_page(session_id="s", state="completed", limit=2)
    assert [task.task_id for task in page.items] == ids[:2:-1]
    assert page.next is not None
    rest = await client.list_tasks_page(session_id="s", state="completed", limit=10, cursor=page.next)
    assert [task.task_id for task in rest.items] == ids[2::-1]
    assert [task.task_id async for task in client.list_tasks(session_id="s", oldest_first=True)] == ids
    assert [task async for task in client.list_tasks(state=["failed", "canceled"])] == []
    with pytest.raises(InvalidRequestError):
        await client.list_tasks_page(cursor="nonsense")


async def test_sessions_and_their_state(client: Client) -> None:
    assert (await client.create_session("s")).session_id == "s"
    made = await client.create_session()
    await client.run("shout", text="a", session_id="s")
    assert (await client.get_session("s")).task_count == 1
    assert {session.session_id async for session in client.list_sessions()} >= {"s", made.session_id}
    assert isinstance(await client.get_session_state("s"), dict)
    with pytest.raises(SessionNotFoundError):
        await client.get_session("nobody")


async def test_services_status_and_health(client: Client) -> None:
    views = {view.definition.service_name: view for view in await client.list_services()}
    assert set(views) == {"shout", "count", "tell", "hold", "fail", "human"}
    assert (await client.get_service("shout")).state == "up"
    with pytest.raises(ServiceNotFoundError):
        await client.get_service("nobody")
    assert (await client.status())["ready"] is True
    assert await client.health() is True


async def test_what_does_not_exist(client: Client) -> None:
    for call in (client.result("nobody"), client.get_task("nobody"), anext(client.stream("nobody"))):
        with pytest.raises(TaskNotFoundError):
            await call


async def test_a_restart_of_the_control_plane_is_not_noticed(tmp_path: Path, free_port: int) -> None:
    GATES["restart"] = asyncio.Event()

    def deployment() -> Deployment:
        return Deployment(SERVICES, store=tmp_path / "store.db", port=free_port, quiet=True, drain_timeout_s=0.0)

    async with Client(f"http://127.0.0.1:{free_port}", timeout_s=DEADLINE_S) as client:
        async with deployment():
            running = [asyncio.ensure_future(client.run("hold", gate="restart", task_id=f"t{n}")) for n in range(20)]
            reading = asyncio.ensure_future(_read(client, await client.submit("tell", events=30)))
            await eventually(lambda: _state(client, "t19", TaskState.WORKING, TaskState.SUBMITTED))
        GATES["restart"].set()
        async with deployment():
            assert await asyncio.gather(*running) == ["let go"] * 20
            assert await reading == list(range(30))
            assert len([task async for task in client.list_tasks(service="hold")]) == 20


async def _read(client: Client, task_id: str) -> list[int]:
    return [event.index async for event in client.stream(task_id)]


async def test_a_deployment_that_ends_wakes_who_waits() -> None:
    GATES["end"] = asyncio.Event()
    async with Deployment(SERVICES, store=":memory:", quiet=True, drain_timeout_s=0.1) as deployment:
        running = asyncio.ensure_future(deployment.client.run("hold", gate="end", task_id="h"))
        await eventually(lambda: _state(deployment.client, "h", TaskState.WORKING, TaskState.SUBMITTED))
    with pytest.raises(ConnectionLostError):
        await running


async def test_the_blocking_client() -> None:
    async with Deployment(SERVICES, store=":memory:", port=0, quiet=True, drain_timeout_s=0.1) as deployment:

        def use() -> None:
            with SyncClient(deployment.url, timeout_s=DEADLINE_S) as client:
                assert client.run("shout", text="hello") == "HELLO"
                task_id = client.submit("tell", events=5)
                assert [event.index for event in client.stream(task_id)] == [0, 1, 2, 3, 4]
                assert [entry.seq for entry in client.history(task_id)] == [1, 2]
                assert [task.task_id for task in client.list_tasks(service="tell")] == [task_id]
                assert client.health() is True

        await asyncio.to_thread(use)
