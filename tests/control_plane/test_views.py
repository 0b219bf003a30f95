"""What the API shows: why a task waits, what happened to it, sessions and services."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, history, outcome, recorded, submit, until, world

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.errors import InvalidRequestError, ServiceNotFoundError, SessionNotFoundError
from llama_deploy.messages.frames import Credits, Goodbye
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy, TaskState


def waits_for(plane: ControlPlane, entry: Any) -> str | None:
    return plane.views.task(entry).waiting_for


async def test_why_a_task_waits() -> None:
    settings = EngineSettings(lease_s=1e9)
    async with world(clock=ManualClock(), settings=settings) as made:
        entry = await submit(made.plane, wait_for_service=True)
        assert waits_for(made.plane, entry) == 'nobody serves "echo" (it was never registered)'
        instance = FakeInstance(concurrency=1, retry=RetryPolicy(initial_s=5.0, jitter=0.0))
        await instance.connect(made.plane)
        step = await instance.delivery()
        assert waits_for(made.plane, entry) is None, "it is being worked on"
        second = await submit(made.plane)
        assert waits_for(made.plane, second) == "a free instance of echo (none ahead of it)"
        instance.fail(step)
        await recorded(entry, 2)
        assert waits_for(made.plane, entry) == "attempt 2 of echo, due in 5.0 s (1 failed)"
        other = await instance.delivery(2)
        instance.park(other, "which?")
        await recorded(second, 2)
        assert waits_for(made.plane, second) == "a person's input for echo: which?"
        instance.send(Goodbye())
        made.manual.advance(5.0)
        assert waits_for(made.plane, entry) == 'nobody serves "echo" (no instance of it is connected)'
        await made.plane.signals.cancel(entry.row.task_id)
        assert waits_for(made.plane, entry) is None


async def test_a_task_as_it_goes() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t", session_id="s")
        began = made.manual.now()
        view = made.plane.views.task(entry)
        assert (view.task_id, view.session_id, view.service, view.state) == ("t", "s", "echo", TaskState.WORKING)
        assert (view.created_at, view.updated_at, view.ended_at, view.hops) == (began, began, None, 1)
        assert (await made.plane.views.result(entry)).result is None
        made.manual.advance(2.0)
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)
        view = made.plane.views.task(entry)
        assert (view.state, view.updated_at, view.ended_at) == (TaskState.COMPLETED, began + 2, began + 2)
        assert (view.waiting_for, view.prompt) == (None, None)


async def test_the_history_of_a_task_that_was_lost_retried_and_answered() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance(retry=RetryPolicy(initial_s=1.0, jitter=0.0))
        await instance.connect(made.plane)
        entry = await submit(made.plane, "echo", "in", task_id="t", metadata={"who": "me"})
        await instance.delivery()
        instance.drop()
        made.manual.advance(0.5)
        await instance.connect(made.plane)
        instance.fail(await instance.delivery(2), "second", type="OddError", traceback="line 1")
        await recorded(entry, 3)
        made.manual.advance(1.0)
        instance.answer(await instance.delivery(3), "third")
        await outcome(made.plane, entry)
        first, lost, retrying, answered = await history(made.plane, "t")

        assert (first.kind, first.seq, first.step_id) == ("submitted", 1, None)
        [message] = first.messages
        assert (message["step_id"], message["service"], message["action"]) == ("t:1", "echo", "new_task")
        assert message["data"]["task"]["metadata"] == {"who": "me"}

        assert (lost.kind, lost.attempt, lost.service, lost.by) == ("lost", 1, "echo", "one")
        assert lost.reason == "instance one was lost"

        assert (retrying.kind, retrying.attempt, retrying.step_id) == ("retrying", 2, "t:1")
        assert retrying.error is not None
        assert (retrying.error.type, retrying.error.message) == ("OddError", "second")
        assert (retrying.started_at, retrying.finished_at) == (1.0, 2.0)
        assert retrying.due_at == retrying.at + 1.0
        assert retrying.outcome is None

        assert (answered.kind, answered.attempt, answered.state) == ("answered", 3, TaskState.COMPLETED)
        assert answered.result == answered.outcome
        assert answered.result is not None
        assert answered.result["result"] == "third"
        assert [e.seq for e in (first, lost, retrying, answered)] == [1, 2, 3, 4]


async def test_the_history_by_pages() -> None:
    async with world(clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        instance = FakeInstance(retry=RetryPolicy(initial_s=1.0, jitter=0.0, max_retries=5))
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        for number in range(1, 5):
            instance.fail(await instance.delivery(number))
            await recorded(entry, number + 1)
            made.manual.advance(100.0)
        found: list[int] = []
        after: int | None = 0
        while after is not None:
            page = await made.plane.views.history(entry, after=after, limit=2)
            assert len(page.items) <= 2
            found += [item.seq for item in page.items]
            after = page.next
        assert found == [1, 2, 3, 4, 5]


async def test_lists_show_what_is_in_memory_and_what_is_not() -> None:
    settings = EngineSettings(ended_tasks_cached_max=1)
    async with world(settings=settings) as made:
        instance = FakeInstance(concurrency=100)
        await instance.connect(made.plane)
        for number in range(6):
            entry = await submit(made.plane, task_id=f"t{number}", session_id="s" if number % 2 else None)
            step = await instance.delivery(number + 1)
            if number < 4:
                instance.answer(step)
                await outcome(made.plane, entry)
        given: dict[str, Any] = {"states": None, "service": None, "session_id": None, "oldest_first": True}

        async def listed(**changes: Any) -> list[str]:
            return [
                t.task_id
                for t in (await made.plane.views.list_tasks(**{**given, "limit": 10, "cursor": None, **changes})).items
            ]

        assert await listed() == [f"t{n}" for n in range(6)]
        assert await listed(oldest_first=False) == [f"t{n}" for n in reversed(range(6))]
        assert await listed(states=["completed"]) == ["t0", "t1", "t2", "t3"]
        assert await listed(states=["working", "failed"]) == ["t4", "t5"]
        assert await listed(session_id="s") == ["t1", "t3", "t5"]
        assert await listed(service="none") == []
        first = await made.plane.views.list_tasks(**given, limit=4, cursor=None)
        rest = await made.plane.views.list_tasks(**given, limit=4, cursor=first.next)
        assert [t.task_id for t in rest.items] == ["t4", "t5"]
        assert rest.next is None
        with pytest.raises(InvalidRequestError, match="no task state 'done'"):
            await listed(states=["done"])


async def test_sessions() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        assert await made.plane.signals.create_session("named") == "named"
        assert await made.plane.signals.create_session("named") == "named"
        made_up = await made.plane.signals.create_session()
        empty = await made.plane.views.session("named")
        assert (empty.task_count, empty.open_task_count, empty.current_task_id, empty.updated_at) == (0, 0, None, None)
        entry = await submit(made.plane, task_id="a", session_id="named")
        await submit(made.plane, task_id="b", session_id="named")
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)
        view = await made.plane.views.session("named")
        assert (view.task_count, view.open_task_count, view.current_task_id) == (2, 1, "b")
        page = await made.plane.views.list_sessions(limit=1, cursor=None)
        more = await made.plane.views.list_sessions(limit=5, cursor=page.next)
        assert {s.session_id for s in [*page.items, *more.items]} == {"named", made_up}
        assert await made.plane.views.session_state("named") == {"retries": 0}
        for call in (made.plane.views.session("none"), made.plane.views.session_state("none")):
            with pytest.raises(SessionNotFoundError):
                await call
        with pytest.raises(InvalidRequestError):
            await made.plane.signals.create_session("a\nb")


async def test_sessions_created_at_once_are_one() -> None:
    async with world() as made:
        await FakeInstance().connect(made.plane)
        await asyncio.gather(
            *[made.plane.signals.create_session("s") for _ in range(5)],
            *[submit(made.plane, session_id="s") for _ in range(5)],
        )
        assert len((await made.plane.views.list_sessions(limit=5, cursor=None)).items) == 1


async def test_services() -> None:
    async with world(clock=ManualClock()) as made:
        one, two = FakeInstance(instance_id="1", concurrency=1), FakeInstance(["echo", "other"], instance_id="2")
        await one.connect(made.plane)
        await two.connect(made.plane)
        await asyncio.gather(*[submit(made.plane) for _ in range(3)])
        await until(lambda: made.plane.views.service("echo").running == 3)
        view = made.plane.views.service("echo")
        assert [(i.instance_id, i.capacity, i.host, i.pid) for i in view.instances] == [
            ("1", 1, "host", 1),
            ("2", 8, "host", 1),
        ]
        assert (view.state, view.waiting) == ("up", 0)
        assert [v.definition.service_name for v in made.plane.views.services()] == ["echo", "other"]
        two.send(Credits("other", 0))
        assert made.plane.views.service("other").state == "draining"
        two.send(Goodbye())
        assert made.plane.views.service("other").state == "down"
        assert made.plane.views.service("echo").state == "up"
        with pytest.raises(ServiceNotFoundError, match="echo, other"):
            made.plane.views.service("none")


async def test_the_status_in_numbers() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        await submit(made.plane)
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)
        status = await made.plane.status()
        assert status["tasks"] == {"working": 1, "completed": 1}
        assert (status["unfinished_in_memory"], status["instances"], status["ready"]) == (1, 1, True)
        assert status["statistics"]["submitted"] == 2
