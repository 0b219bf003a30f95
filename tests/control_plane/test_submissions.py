"""Submitting: what is refused and why, what repeating a request finds, and what waits visibly."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, outcome, state_of, submit, until, world
from tests.support import DEADLINE_S

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import (
    InvalidRequestError,
    LimitExceededError,
    OrchestratorError,
    QueueFullError,
    ServiceUnknownError,
    ShuttingDownError,
    TaskConflictError,
)
from llama_deploy.messages.frames import Goodbye
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.types import TaskDefinition


async def nothing_recorded(plane: ControlPlane) -> bool:
    """Whether no task and no session was recorded, and none is in memory."""
    await until(lambda: plane.store.backlog == 0)
    sessions = (await plane.store.list_sessions(limit=10)).rows
    return not (await plane.store.count_tasks()) and not sessions and not plane.engine.cache.tasks


# --- services -------------------------------------------------------------------------------------------------------


async def test_an_unknown_service_is_refused_with_the_known_names() -> None:
    async with world() as made:
        await FakeInstance(["shout", "count"]).connect(made.plane)
        with pytest.raises(ServiceUnknownError) as caught:
            await submit(made.plane, "shuot", session_id="s")
        assert caught.value.details["known"] == ["count", "shout"]
        assert 'did you mean "shout"?' in caught.value.fix
        assert "count, shout" in caught.value.why
        assert await nothing_recorded(made.plane)


async def test_a_service_without_an_instance_is_refused_too() -> None:
    async with world() as made:
        instance = FakeInstance(["shout"])
        await instance.connect(made.plane)
        instance.send(Goodbye())
        with pytest.raises(ServiceUnknownError) as caught:
            await submit(made.plane, "shout")
        assert "no instance of it is connected" in caught.value.why
        assert await nothing_recorded(made.plane)


async def test_a_task_waits_visibly_for_its_service_and_runs_when_it_comes() -> None:
    async with world() as made:
        entry = await submit(made.plane, "later", wait_for_service=True)
        view = made.plane.views.task(entry)
        assert view.state.value == "submitted"
        assert view.waiting_for == 'nobody serves "later" (it was never registered)'
        instance = FakeInstance(["later"])
        await instance.connect(made.plane)
        instance.answer(await instance.delivery(), "here")
        assert (await outcome(made.plane, entry)).result == "here"


async def test_the_default_service_is_used_where_none_is_named() -> None:
    async with world(default_service="echo") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        assert made.plane.views.task(entry).service == "echo"


async def test_without_a_service_the_orchestrators_own_words_come_back() -> None:
    async with world() as made:
        with pytest.raises(OrchestratorError, match="names no service: set agent_id"):
            await submit(made.plane, None, session_id="s")
        assert await nothing_recorded(made.plane)


async def test_what_an_orchestrator_raises_at_submission_is_told_and_nothing_is_recorded() -> None:
    class Slow(BaseOrchestrator):
        async def get_next_messages(self, task_def: TaskDefinition, state: dict[str, Any]) -> Any:
            state["touched"] = True
            await asyncio.sleep(0)
            raise ValueError("only on weekdays")

        async def add_result_to_state(self, result: Any, state: dict[str, Any]) -> dict[str, Any]:
            return state

    async with world(orchestrator=Slow()) as made:
        with pytest.raises(OrchestratorError, match="only on weekdays"):
            await submit(made.plane, None, session_id="s")
        assert await nothing_recorded(made.plane)


# --- repeating ------------------------------------------------------------------------------------------------------


async def test_the_same_id_and_request_is_the_same_task() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        first, second = await asyncio.gather(submit(made.plane, task_id="t"), submit(made.plane, task_id="t"))
        assert first is second
        assert await submit(made.plane, task_id="t") is first
        instance.answer(await instance.delivery())
        await outcome(made.plane, "t")
        assert (await submit(made.plane, task_id="t")).ended
        assert await made.plane.store.count_tasks() == {"completed": 1}


@pytest.mark.parametrize(
    "other", [{"text": "other"}, {"service": "echo2"}, {"session_id": "s"}], ids=["input", "service", "session"]
)
async def test_the_same_id_for_another_request_is_refused(other: dict[str, str]) -> None:
    async with world() as made:
        await FakeInstance(["echo", "echo2"]).connect(made.plane)
        await submit(made.plane, task_id="t")
        with pytest.raises(TaskConflictError):
            await submit(made.plane, **{"task_id": "t", **other})
        assert await made.plane.store.count_tasks() == {"working": 1}


async def test_the_same_id_after_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="open")
        await submit(made.plane, task_id="done")
        deliveries = {(await instance.delivery(n)).task_id: await instance.delivery(n) for n in (1, 2)}
        instance.answer(deliveries["done"], "result")
        await outcome(made.plane, "done")
        await made.stop()

        plane = await made.start()
        again = FakeInstance()
        await again.connect(plane, [("open:1", 1)])
        done = await submit(plane, task_id="done")
        assert done.ended
        assert (await outcome(plane, done)).result == "result"
        opened = await submit(plane, task_id="open")
        assert not opened.ended
        again.answer(deliveries["open"], "late")
        assert await plane.engine.wait_ended(opened, DEADLINE_S)
        assert (await outcome(plane, "open")).result == "late"
        with pytest.raises(TaskConflictError):
            await submit(plane, text="other", task_id="done")
        with pytest.raises(TaskConflictError):
            await submit(plane, text="other", task_id="open")


async def test_an_id_whose_task_is_not_in_memory_any_more() -> None:
    async with world(settings=EngineSettings(ended_tasks_cached_max=1)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        for number in range(3):
            await submit(made.plane, task_id=f"t{number}")
            instance.answer(await instance.delivery(number + 1), f"r{number}")
            await outcome(made.plane, f"t{number}")
        entries = await asyncio.gather(*[submit(made.plane, task_id="t0") for _ in range(3)])
        assert all(entry.ended for entry in entries)
        with pytest.raises(TaskConflictError):
            await submit(made.plane, text="other", task_id="t1")


async def test_twenty_at_once_under_one_key_are_one_task() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entries = await asyncio.gather(*[submit(made.plane, idempotency_key="k") for _ in range(20)])
        assert len({entry.row.task_id for entry in entries}) == 1
        assert await made.plane.store.count_tasks() == {"working": 1}
        assert not made.plane.engine.submissions._keys_in_flight
        instance.answer(await instance.delivery())
        for entry in entries:
            assert await made.plane.engine.wait_ended(entry, DEADLINE_S)


async def test_twenty_at_once_under_one_key_and_twenty_under_another(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await FakeInstance().connect(made.plane)
        calls = [submit(made.plane, text=f"n{n % 2}", idempotency_key=f"k{n % 2}", session_id="s") for n in range(40)]
        entries = await asyncio.gather(*calls)
        assert len({entry.row.task_id for entry in entries}) == 2
        assert await made.plane.store.count_tasks() == {"working": 2}


async def test_a_key_after_a_restart_and_for_another_request(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await FakeInstance().connect(made.plane)
        first = await submit(made.plane, idempotency_key="k")
        with pytest.raises(TaskConflictError, match="idempotency key 'k'"):
            await submit(made.plane, text="other", idempotency_key="k")
        await made.stop()

        plane = await made.start()
        entries = await asyncio.gather(*[submit(plane, idempotency_key="k") for _ in range(5)])
        assert {entry.row.task_id for entry in entries} == {first.row.task_id}
        with pytest.raises(TaskConflictError):
            await submit(plane, text="other", idempotency_key="k")
        assert not plane.engine.submissions._keys_in_flight


async def test_a_key_whose_submission_was_refused_is_free() -> None:
    async with world() as made:
        for _ in range(2):
            with pytest.raises(ServiceUnknownError):
                await submit(made.plane, idempotency_key="k")
        await FakeInstance().connect(made.plane)
        entries = await asyncio.gather(*[submit(made.plane, idempotency_key="k") for _ in range(3)])
        assert len({entry.row.task_id for entry in entries}) == 1


async def test_a_key_of_one_task_and_the_id_of_another() -> None:
    async with world() as made:
        await FakeInstance().connect(made.plane)
        first = await submit(made.plane, task_id="a", idempotency_key="k")
        assert await submit(made.plane, task_id="b", idempotency_key="k") is first
        with pytest.raises(TaskConflictError):
            await submit(made.plane, text="other", task_id="a", idempotency_key="k2")
        assert (await submit(made.plane, task_id="a", idempotency_key="k3")) is first


# --- limits and rubbish ---------------------------------------------------------------------------------------------


async def test_an_input_over_the_limit_names_the_setting() -> None:
    async with world(settings=EngineSettings(payload_bytes_max=1000)) as made:
        await FakeInstance().connect(made.plane)
        await submit(made.plane, text="x" * 500)
        with pytest.raises(LimitExceededError) as caught:
            await submit(made.plane, text="ä" * 501)
        assert caught.value.details == {"setting": "payload_bytes_max", "limit": 1000}


async def test_metadata_over_the_limit_names_the_setting() -> None:
    async with world(settings=EngineSettings(payload_bytes_max=1000)) as made:
        await FakeInstance().connect(made.plane)
        with pytest.raises(LimitExceededError) as caught:
            await submit(made.plane, metadata={"note": "x" * 2000})
        assert caught.value.details["setting"] == "payload_bytes_max"
        assert await nothing_recorded(made.plane)


@pytest.mark.parametrize("field", ["task_id", "session_id", "idempotency_key", "service"])
@pytest.mark.parametrize("value", ["", "x" * 201, "a\nb", "a\ud800b", "a\x00"], ids=repr)
async def test_ids_that_cannot_be_used(field: str, value: str) -> None:
    async with world() as made:
        await FakeInstance().connect(made.plane)
        definition = TaskDefinition(input="x", agent_id="echo")
        setattr(definition, {"service": "agent_id"}.get(field, field), value)
        with pytest.raises(InvalidRequestError) as caught:
            await made.plane.engine.submissions.submit_and_wait(definition)
        assert {"service": "agent_id"}.get(field, field) in caught.value.what
        assert await nothing_recorded(made.plane)


@pytest.mark.parametrize("field", ["input", "metadata"])
async def test_text_with_surrogates_is_refused(field: str) -> None:
    async with world() as made:
        await FakeInstance().connect(made.plane)
        definition = TaskDefinition(input="x", agent_id="echo")
        setattr(definition, field, "\ud800" if field == "input" else {"a": "\ud800"})
        with pytest.raises(InvalidRequestError) as caught:
            await made.plane.engine.submissions.submit_and_wait(definition)
        assert field in caught.value.what
        assert await nothing_recorded(made.plane)


async def test_a_task_may_not_be_named_as_its_session() -> None:
    """A row whose two names are the same is a task without a session: erasing the session would leave it there."""
    async with world() as made:
        await FakeInstance().connect(made.plane)
        with pytest.raises(InvalidRequestError) as caught:
            await submit(made.plane, task_id="order-7", session_id="order-7")
        assert "order-7" in caught.value.what
        assert caught.value.fix
        assert await nothing_recorded(made.plane)


async def test_unfinished_tasks_are_limited_by_a_setting() -> None:
    async with world(settings=EngineSettings(tasks_unfinished_max=2)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        first = await submit(made.plane)
        await submit(made.plane)
        with pytest.raises(QueueFullError) as caught:
            await submit(made.plane)
        assert caught.value.details == {"setting": "tasks_unfinished_max", "limit": 2, "retry_after_s": 1.0}
        instance.answer(await instance.delivery())
        await outcome(made.plane, first)
        await submit(made.plane)


async def test_a_stopping_control_plane_takes_nothing_new() -> None:
    async with world() as made:
        await FakeInstance().connect(made.plane)
        made.plane.refuse_new_work()
        with pytest.raises(ShuttingDownError):
            await submit(made.plane)


# --- sessions -------------------------------------------------------------------------------------------------------


async def test_a_session_is_created_by_its_first_task() -> None:
    async with world() as made:
        await FakeInstance().connect(made.plane)
        await submit(made.plane, session_id="mine")
        await submit(made.plane, session_id="mine")
        view = await made.plane.views.session("mine")
        assert (view.task_count, view.open_task_count) == (2, 2)


async def test_sessions_that_are_pushed_out_of_memory_keep_their_tasks_apart() -> None:
    settings = EngineSettings(sessions_cached_max=1)
    async with world(settings=settings) as made:
        instance = FakeInstance(concurrency=1000)
        await instance.connect(made.plane)
        names = [f"s{number % 10}" for number in range(50)]
        entries = await asyncio.gather(
            *[submit(made.plane, session_id=name, idempotency_key=f"k{n}") for n, name in enumerate(names)]
        )
        for number in range(50):
            instance.answer(await instance.delivery(number + 1))
        for entry in entries:
            await outcome(made.plane, entry)
        counted = [(await made.plane.views.session_state(f"s{n}"))["retries"] for n in range(10)]
        assert counted == [4] * 10  # the published counter starts at 0
        assert made.plane.engine.statistics.conflicts == 0
        assert len(made.plane.engine.cache.sessions) <= 2


async def test_the_state_of_a_refused_task_is_not_that_of_a_recorded_one() -> None:
    async with world() as made:
        entry: list[TaskEntry] = []
        with pytest.raises(ServiceUnknownError):
            entry.append(await submit(made.plane, task_id="t"))
        await FakeInstance().connect(made.plane)
        await submit(made.plane, task_id="t")
        assert await state_of(made.plane, "t") == "working"
