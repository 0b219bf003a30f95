"""Retry, replay and fork: what the new task begins with, what it keeps and runs again; the old one never changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.control_plane.harness import (
    FakeInstance,
    World,
    history,
    outcome,
    recorded,
    state_of,
    stream,
    submit,
    until,
    world,
)

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.forks import Renaming
from llama_deploy.control_plane.repeats import Edit
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import (
    InvalidRequestError,
    LimitExceededError,
    NotRepeatableError,
    ServiceUnknownError,
    TaskConflictError,
    TaskNotFoundError,
)
from llama_deploy.messages import QueueMessage, frames
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator, get_result_key
from llama_deploy.testing import ManualClock
from llama_deploy.types import ActionTypes, RetryPolicy, TaskDefinition, TaskOptions, TaskResult


class Fan(BaseOrchestrator):
    """One step for each word of the input, then `join`, whose answer ends the task; a failure ends it as failed."""

    handles_failures = True

    def __init__(self) -> None:
        self.broken = False

    async def get_next_messages(self, task_def: TaskDefinition, state: dict[str, Any]) -> Any:
        own = state.setdefault(task_def.task_id, {})
        words = task_def.input.split()
        if "sent" not in own:
            own["sent"], own["me"] = words, task_def.task_id
            data = {"me": task_def.task_id, "task": task_def.model_dump()}
            return [QueueMessage(type="work", tag=word, data={**data, "word": word}) for word in words], state
        if self.broken:
            raise ValueError("the policy is broken")
        if len(own.get("got", {})) == len(words) and "joined" not in own:
            own["joined"] = True
            return [QueueMessage(type="join", data={"got": own["got"], "by": own["by"]})], state
        return [], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> Any:
        own = state[result.task_id]
        state["folded"] = state.get("folded", 0) + 1
        if result.status != "completed" or result.service == "join":
            state[get_result_key(result.task_id)] = result
        else:
            own["got"] = {**own.get("got", {}), str(result.tag): result.result}
            own["by"] = {**own.get("by", {}), str(result.step_id): result.tag}
        return state


class Again(Fan):
    """Has each step tried again once; a step that fails for good ends the task at once."""

    async def get_next_messages(self, task_def: TaskDefinition, state: dict[str, Any]) -> Any:
        own = state.setdefault(task_def.task_id, {})
        again = own.pop("again", None)
        if again is not None:
            return [QueueMessage(type="work", tag=again, data={"word": again}, step_id=own["step"])], state
        if "ended" in own:
            return [QueueMessage(type="human", action=ActionTypes.COMPLETED_TASK, data=own["ended"])], state
        return await super().get_next_messages(task_def, state)

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> Any:
        own = state[result.task_id]
        failed = own.setdefault("failed", [])
        if result.error is not None and result.error.retryable and result.tag not in failed:
            own["failed"] = [*failed, result.tag]
            own["again"], own["step"] = result.tag, result.step_id
            return state
        if result.error is not None:
            own["ended"] = result.model_dump(mode="json")
            return state
        return await super().add_result_to_state(result, state)


class Unseeing(Fan):
    """Never sees a failure that is tried again."""

    handles_failures = False


class Works(FakeInstance):
    """An instance of everything, asked step by step."""

    def __init__(self) -> None:
        super().__init__(["work", "join", "echo"], concurrency=100)

    async def step(self, task_id: str, word: str | None = None, *, service: str = "work") -> frames.Deliver:
        """The newest delivery of a task for a word."""
        found: frames.Deliver = await until(lambda: next(iter(self._steps(task_id, word, service)), None))
        return found

    def _steps(self, task_id: str, word: str | None, service: str) -> list[frames.Deliver]:
        return [
            op
            for op in reversed(self.all(frames.Deliver))
            if (op.task_id, op.service) == (task_id, service) and word in (None, data_of(op).get("word"))
        ]

    def words(self, task_id: str) -> list[str]:
        """The words that a task has had worked on here, in order."""
        steps = [op for op in self.all(frames.Deliver) if (op.task_id, op.service) == (task_id, "work")]
        return [data_of(op)["word"] for op in steps]

    async def finish(self, task_id: str, **answers: str) -> None:
        """Answer steps of a task, one after the other."""
        for word, answer in answers.items():
            step = await self.step(task_id, word)
            self.answer(step, answer)
            await self.acknowledged(step)

    async def joined(self, task_id: str) -> dict[str, Any]:
        """Answer the last step of a task; what it was given."""
        step = await self.step(task_id, service="join")
        self.answer(step, "joined")
        return data_of(step)


def data_of(step: frames.Deliver) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(step.message)
    return found


async def lived(plane: ControlPlane, task_id: str) -> list[Any]:
    """Everything that is recorded of a task."""
    row = await plane.store.load_task(task_id)
    return [row, await plane.store.load_history(task_id), await plane.store.load_chunks(task_id)]


async def failed_fan(plane: ControlPlane, works: Works, **fields: Any) -> TaskEntry:
    """A task of three words: `a` has failed, and `b` and `c` have answered, the latter after the failure."""
    task = await submit(plane, None, "a b c", **fields)
    await works.finish(task.row.task_id, b="B")
    step = await works.step(task.row.task_id, "a")
    works.fail(step, "no", retryable=False)
    await works.acknowledged(step)
    await works.finish(task.row.task_id, c="C")
    assert (await outcome(plane, task)).status == "failed"
    return task


# --- retry ------------------------------------------------------------------------------------------------------------


async def test_a_retry_runs_what_failed_and_keeps_what_was_answered_before_and_after() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = await failed_fan(made.plane, works)
        before = await lived(made.plane, old.row.task_id)
        new, fresh = await made.plane.repeats.retry(old.row.task_id)
        assert fresh
        assert new.row.origin == f"retry:{old.row.task_id}"
        await works.finish(new.row.task_id, a="A")
        given_to_join = await works.joined(new.row.task_id)
        assert (await outcome(made.plane, new)).result == "joined"
        assert works.words(new.row.task_id) == ["a"]
        assert given_to_join["got"] == {"a": "A", "b": "B", "c": "C"}
        steps = {f"{new.row.task_id}:{number}": word for number, word in ((1, "a"), (2, "b"), (3, "c"))}
        assert given_to_join["by"] == steps
        assert await lived(made.plane, old.row.task_id) == before


async def test_a_retry_goes_back_before_the_first_failed_attempt() -> None:
    async with world(orchestrator=SimpleOrchestrator(max_retries=1)) as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane)
        for attempt in (1, 2):
            step = await works.delivery(attempt)
            assert step.attempt == attempt
            works.fail(step)
            await works.acknowledged(step)
        assert (await outcome(made.plane, old)).status == "failed"
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        step = await works.step(new.row.task_id, service="echo")
        assert (step.attempt, step.step_id) == (1, f"{new.row.task_id}:1")
        works.fail(step)  # the policy counts anew: this is the first failure
        again = await works.delivery(4)
        assert (again.step_id, again.attempt) == (step.step_id, 2)
        works.answer(again)
        assert (await outcome(made.plane, new)).status == "completed"
        kinds = [entry.kind for entry in await history(made.plane, new)]
        assert kinds == ["forked", "retrying", "answered"]


async def test_a_retry_of_a_canceled_task_goes_on_where_it_was_canceled() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane, None, "a b")
        await works.finish(old.row.task_id, a="A")
        await made.plane.signals.cancel(old.row.task_id)
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        await works.finish(new.row.task_id, b="B")
        assert (await works.joined(new.row.task_id))["got"] == {"a": "A", "b": "B"}
        assert works.words(new.row.task_id) == ["b"]


async def test_a_retry_of_a_canceled_task_counts_failures_anew() -> None:
    async with world(orchestrator=SimpleOrchestrator(max_retries=1)) as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane)
        works.fail(await works.delivery(1))
        await works.delivery(2)
        await made.plane.signals.cancel(old.row.task_id)
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        step = await works.delivery(3)
        works.fail(step)  # the first failure of the new task, not the second and last one of the old
        again = await works.delivery(4)
        assert (again.step_id, again.attempt) == (step.step_id, 2)
        works.answer(again)
        assert (await outcome(made.plane, new)).status == "completed"


async def test_a_retry_counts_anew_for_what_failed_beside_what_ended_the_task() -> None:
    async with world(orchestrator=Again()) as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane, None, "a b")
        first = await works.step(old.row.task_id, "a")
        works.fail(first)
        await until(lambda: works.words(old.row.task_id) == ["a", "b", "a"])
        works.fail(await works.step(old.row.task_id, "b"), retryable=False)
        assert (await outcome(made.plane, old)).status == "failed"
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        await works.step(new.row.task_id, "b")
        works.fail(await works.step(new.row.task_id, "a"))
        await until(lambda: works.words(new.row.task_id) == ["a", "b", "a"])
        await works.finish(new.row.task_id, a="A", b="B")
        assert (await works.joined(new.row.task_id))["got"] == {"a": "A", "b": "B"}


async def test_failures_that_no_policy_has_counted_take_nothing_back() -> None:
    async with world(orchestrator=Unseeing()) as made:
        works = Works()
        works.definitions[0] = works.definitions[0].model_copy(update={"retry": RetryPolicy(max_retries=3)})
        await works.connect(made.plane)
        old = await submit(made.plane, None, "a b")
        works.fail(await works.step(old.row.task_id, "a"))
        await until(lambda: old.open[f"{old.row.task_id}:1"].failures == 1)
        await works.finish(old.row.task_id, b="B")
        version = old.row.version
        await made.plane.signals.cancel(old.row.task_id)
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        assert new.definition.options is not None
        assert new.definition.options.origin is not None
        assert new.definition.options.origin.seq == version


async def test_a_decision_that_failed_is_made_again_with_the_same_answer() -> None:
    policy = Fan()
    async with world(orchestrator=policy, settings=EngineSettings(decision_retries_max=0)) as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane, None, "a")
        policy.broken = True
        await works.finish(old.row.task_id, a="A")
        failed = await outcome(made.plane, old)
        assert failed.error is not None
        assert failed.error.code == "LD210"
        policy.broken = False
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        assert (await works.joined(new.row.task_id))["got"] == {"a": "A"}
        assert works.words(new.row.task_id) == []
        assert (await outcome(made.plane, new)).status == "completed"


async def test_from_the_start_everything_runs_anew() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = await failed_fan(made.plane, works)
        new, _ = await made.plane.repeats.retry(old.row.task_id, from_start=True)
        await works.step(new.row.task_id, "c")
        assert works.words(new.row.task_id) == ["a", "b", "c"]
        entries = await history(made.plane, new)
        assert entries[0].kind == "submitted"
        assert new.row.origin == f"retry:{old.row.task_id}"


async def test_what_cannot_be_retried_is_refused_with_what_to_do() -> None:
    async with world() as made:
        works = Works()
        await works.connect(made.plane)
        task = await submit(made.plane)
        with pytest.raises(NotRepeatableError, match="has not ended") as refused:
            await made.plane.repeats.retry(task.row.task_id)
        assert "cancel" in refused.value.fix
        works.answer(await works.delivery())
        await outcome(made.plane, task)
        with pytest.raises(NotRepeatableError, match="nothing to retry") as refused:
            await made.plane.repeats.retry(task.row.task_id)
        assert "tasks replay" in refused.value.fix
        with pytest.raises(TaskNotFoundError):
            await made.plane.repeats.retry("nobody")


async def test_a_service_that_nobody_serves_is_refused_unless_the_task_waits_for_it() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = await failed_fan(made.plane, works)
        patient = await failed_fan(made.plane, works, wait_for_service=True)
        made.plane.engine.registry.services.clear()
        with pytest.raises(ServiceUnknownError):
            await made.plane.repeats.retry(old.row.task_id)
        new, _ = await made.plane.repeats.retry(patient.row.task_id)
        assert new.row.state in ("submitted", "working")


# --- the same request twice -------------------------------------------------------------------------------------------


async def test_repeating_a_request_finds_the_first_new_task() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = (await failed_fan(made.plane, works, idempotency_key="mine")).row.task_id
        repeats = made.plane.repeats
        first, fresh = await repeats.retry(old, new_task_id="second", key="k")
        again, repeated = await repeats.retry(old, new_task_id="second", key="k")
        by_key, _ = await repeats.retry(old, key="k")
        assert (fresh, repeated) == (True, False)
        assert first.row.task_id == again.row.task_id == by_key.row.task_id == "second"
        with pytest.raises(TaskConflictError):
            await repeats.replay(old, new_task_id="second")
        edited, _ = await repeats.replay(old, step_id=f"{old}:1", edit=Edit(input="x"), new_task_id="third")
        with pytest.raises(TaskConflictError):
            await repeats.replay(old, step_id=f"{old}:1", edit=Edit(input="y"), new_task_id="third")
        assert edited.row.task_id == "third"
        with pytest.raises(InvalidRequestError):
            await repeats.retry(old, new_task_id=old)


# --- replay and fork --------------------------------------------------------------------------------------------------


async def test_a_step_is_replayed_with_other_data_and_its_siblings_keep_their_answers() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane, None, "a b")
        await works.finish(old.row.task_id, a="A", b="B")
        await works.joined(old.row.task_id)
        await outcome(made.plane, old)
        data = {"word": "a", "other": True, "me": old.row.task_id}
        new, _ = await made.plane.repeats.replay(old.row.task_id, step_id=f"{old.row.task_id}:1", edit=Edit(data=data))
        step = await works.step(new.row.task_id, "a")
        assert data_of(step) == {**data, "me": new.row.task_id}
        works.answer(step, "other")
        assert (await works.joined(new.row.task_id))["got"] == {"a": "other", "b": "B"}
        assert works.words(new.row.task_id) == ["a"]
        assert new.row.origin == f"replay:{old.row.task_id}"


async def test_the_input_of_a_step_or_of_the_whole_task_may_be_another_one() -> None:
    async with world() as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane, text="old")
        works.answer(await works.delivery())
        await outcome(made.plane, old)
        whole, _ = await made.plane.repeats.replay(old.row.task_id, edit=Edit(input={"text": "é"}))
        step = await works.step(whole.row.task_id, service="echo")
        assert data_of(step)["task"]["input"] == whole.definition.input == '{"text": "é"}'
        one, _ = await made.plane.repeats.replay(
            old.row.task_id, step_id=f"{old.row.task_id}:1", edit=Edit(input="new")
        )
        task = data_of(await works.step(one.row.task_id, service="echo"))["task"]
        assert (task["input"], task["task_id"]) == ("new", one.row.task_id)


async def test_a_fork_goes_on_from_any_entry_and_runs_what_was_open_then() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane, None, "a b c")
        await works.finish(old.row.task_id, a="A", b="B")
        new, _ = await made.plane.repeats.fork(old.row.task_id, 2)  # of a task that has not ended
        await works.step(new.row.task_id, "c")
        assert works.words(new.row.task_id) == ["b", "c"]
        await works.finish(new.row.task_id, b="other", c="C")
        assert (await works.joined(new.row.task_id))["got"] == {"a": "A", "b": "other", "c": "C"}
        assert await state_of(made.plane, old) == "working"


async def test_points_and_edits_that_there_are_not_are_refused() -> None:
    async with world(orchestrator=Fan(), settings=EngineSettings(payload_bytes_max=2_000)) as made:
        works = Works()
        await works.connect(made.plane)
        task = await submit(made.plane, None, "a")
        task_id = task.row.task_id
        await works.finish(task_id, a="A")
        await works.joined(task_id)
        await outcome(made.plane, task)
        repeats = made.plane.repeats
        for seq in (0, -1, 4):
            with pytest.raises(NotRepeatableError, match="cannot go on from"):
                await repeats.fork(task_id, seq)
        with pytest.raises(NotRepeatableError, match="ended it"):
            await repeats.fork(task_id, 3)
        with pytest.raises(NotRepeatableError, match="was not open"):
            await repeats.fork(task_id, 2, step_id=f"{task_id}:1")
        with pytest.raises(NotRepeatableError, match="no step"):
            await repeats.replay(task_id, step_id=f"{task_id}:9")
        step = f"{task_id}:1"
        for edit, said in ((Edit(data=[1]), "not an object"), (Edit(data={}, input=""), "both")):
            with pytest.raises(InvalidRequestError, match=said):
                await repeats.replay(task_id, step_id=step, edit=edit)
        with pytest.raises(InvalidRequestError, match="carries no task"):
            await repeats.replay(task_id, step_id=f"{task_id}:2", edit=Edit(input="x"))
        with pytest.raises(InvalidRequestError, match="about a step"):
            await repeats.replay(task_id, edit=Edit(data={}))
        with pytest.raises(InvalidRequestError, match="step_id is missing"):
            await repeats.fork(task_id, 1, edit=Edit(data={}))
        with pytest.raises(LimitExceededError):
            await repeats.replay(task_id, step_id=step, edit=Edit(data={"x": "y" * 3_000}))
        listing = await made.plane.views.list_tasks(
            states=None, service=None, session_id=None, oldest_first=False, limit=10, cursor=None
        )
        assert [view.task_id for view in listing.items] == [task_id]


async def test_people_are_asked_anew_by_what_they_had_not_answered() -> None:
    async with world() as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane)
        step = await works.delivery()
        works.ask(step, "first?")
        await until(lambda: old.row.state == "input_required")
        await made.plane.signals.send_input(old.row.task_id, "yes")
        works.park(step, "second?", resume="redeliver", consumed=1, snapshot=b"where it was")
        await recorded(old, 4)
        new, _ = await made.plane.repeats.fork(old.row.task_id, 4)
        again = await works.step(new.row.task_id, service="echo")
        assert again.inputs == [b'"yes"']
        assert again.snapshot == b"where it was"
        assert await state_of(made.plane, old) == "input_required"
        before, _ = await made.plane.repeats.fork(old.row.task_id, 2)
        assert (await works.step(before.row.task_id, service="echo")).inputs == []


async def test_a_session_is_shared_and_not_rewound() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = await failed_fan(made.plane, works, session_id="s")
        assert await made.plane.views.session_state("s") == {"folded": 3}
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        await works.finish(new.row.task_id, a="A")
        assert (await works.joined(new.row.task_id))["got"] == {"a": "A", "b": "B", "c": "C"}
        await outcome(made.plane, new)
        assert new.row.session_id == "s"
        # The answer of `c` is folded once more, `a` and `join` for the first time.
        assert await made.plane.views.session_state("s") == {"folded": 6}


async def test_options_are_kept_and_times_begin_anew() -> None:
    async with world() as made:
        works = Works()
        await works.connect(made.plane)
        options = TaskOptions(priority=7, total_timeout_s=100.0)
        old = await submit(made.plane, options=options, metadata={"of": "mine"})
        works.fail(await works.delivery(), retryable=False)
        await outcome(made.plane, old)
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        assert new.definition.options is not None
        assert new.definition.options.origin is not None
        assert new.definition.options.model_copy(update={"origin": None}) == options
        assert new.definition.metadata == {"of": "mine"}
        assert new.definition.idempotency_key is None
        assert new.row.created_at >= (old.row.ended_at or 0)
        works.answer(await works.step(new.row.task_id, service="echo"))
        assert await stream(made.plane, new) == []


# --- crashes and generations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "sqlite"])
async def test_a_new_task_needs_its_own_history_alone_after_a_crash(tmp_path: Path, *, on_disk: bool) -> None:
    made = World(
        tmp_path / "store.db" if on_disk else None, orchestrator=Fan(), settings=EngineSettings(recovery_grace_s=0.0)
    )
    await made.start()
    try:
        works = Works()
        await works.connect(made.plane)
        old = (await failed_fan(made.plane, works)).row.task_id
        new = (await made.plane.repeats.retry(old))[0].row.task_id
        await made.crash()
        await made.start()
        assert await made.plane.store.delete_tasks([old]) == 1
        works = Works()
        await works.connect(made.plane)
        await works.finish(new, a="A")
        assert (await works.joined(new))["got"] == {"a": "A", "b": "B", "c": "C"}
        assert (await outcome(made.plane, new)).status == "completed"
        assert works.words(new) == ["a"]
    finally:
        await made.stop()


async def test_a_retry_of_a_retry_of_a_retry() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        task_id = (await failed_fan(made.plane, works)).row.task_id
        for generation in range(3):
            new = (await made.plane.repeats.retry(task_id, new_task_id=f"g{generation}"))[0]
            step = await works.step(new.row.task_id, "a")
            works.fail(step, f"again {generation}", retryable=False)
            assert (await outcome(made.plane, new)).status == "failed"
            task_id = new.row.task_id
        last = (await made.plane.repeats.retry(task_id))[0]
        assert last.row.origin == "retry:g2"
        await works.finish(last.row.task_id, a="A")
        assert (await works.joined(last.row.task_id))["got"] == {"a": "A", "b": "B", "c": "C"}
        assert works.words(last.row.task_id) == ["a"]
        page = await made.plane.views.list_tasks(
            states=None, service=None, session_id=None, oldest_first=False, limit=9, cursor=None, filter="from:g1"
        )
        assert [view.task_id for view in page.items] == ["g2"]


@given(st.lists(st.integers(0, 2), max_size=3), st.data())
def test_wherever_a_task_is_forked_the_end_is_the_same(order: list[int], data: st.DataObject) -> None:
    """Whatever is answered in whatever order: a fork of a fork ends with what the first one would have ended with."""

    async def run() -> None:
        async with world(orchestrator=Fan()) as made:
            works = Works()
            await works.connect(made.plane)
            task = await submit(made.plane, None, "a b c")
            left = ["a", "b", "c"]
            for position in order:
                word = left.pop(position % len(left))
                await works.finish(task.row.task_id, **{word: word.upper()})
            for _ in range(2):
                seq = data.draw(st.integers(1, task.settled_seq))
                task = (await made.plane.repeats.fork(task.row.task_id, seq))[0]
                assert [entry.kind for entry in await history(made.plane, task)] == ["forked"]
            for step in list(task.open.values()):
                if step.service == "work":
                    await works.finish(task.row.task_id, **{str(step.tag): str(step.tag).upper()})
            assert (await works.joined(task.row.task_id))["got"] == {"a": "A", "b": "B", "c": "C"}
            assert (await outcome(made.plane, task)).status == "completed"

    asyncio.run(run())


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_renamed_by_structure_and_never_inside_of_texts() -> None:
    same = Renaming("t1", "new")
    assert same.value(
        {
            "t1": ["t1", "t1:3", "t1:x", "t1:", "about t1", "t11", 1, None],
            "result_t1": {"stream_t1": True, "t1:2": "result_t1"},
            "my t1": '{"task_id": "t1"}',
        }
    ) == {
        "new": ["new", "new:3", "t1:x", "t1:", "about t1", "t11", 1, None],
        "result_new": {"stream_new": True, "new:2": "result_new"},
        "my t1": '{"task_id": "t1"}',
    }
    untouched = b'{"a" : 1.0}'
    assert same.encoded(untouched) is untouched
    assert same.encoded(b'{"t1": "t1"}') == b'{"new":"new"}'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5) | st.sampled_from(["old", "old:1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["old", "a", "old:2"]), inner, max_size=3)
    ),
)


@given(JSON)
def test_renaming_there_and_back_changes_nothing(value: Any) -> None:
    encoded = msgspec.json.encode(value)
    there = Renaming("old", "néw").encoded(encoded)
    assert msgspec.json.decode(Renaming("néw", "old").encoded(there)) == value


async def test_what_was_done_once_is_not_done_again_by_a_retry_and_is_by_a_replay() -> None:
    async with world() as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane)
        step = await works.delivery()
        works.send(frames.Remember(step.step_id, step.attempt, "charged", b'"receipt 7"'))
        await recorded(old, 2)
        works.fail(step, retryable=False)
        await outcome(made.plane, old)
        again, _ = await made.plane.repeats.retry(old.row.task_id)
        assert (await works.step(again.row.task_id, service="echo")).remembered == {"charged": b'"receipt 7"'}
        anew, _ = await made.plane.repeats.replay(old.row.task_id, step_id=step.step_id)
        assert not (await works.step(anew.row.task_id, service="echo")).remembered


async def test_a_retry_of_a_step_that_had_called_somebody_calls_again() -> None:
    """The new task's history can be read: a call is not a value that was remembered."""
    async with world() as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane)
        step = await works.delivery()
        works.send(frames.Remember(step.step_id, step.attempt, "charged", b"7"))
        called = {"input": "{}", "agent_id": "nobody", "wait_for_service": True}
        works.send(frames.Call(step.step_id, step.attempt, "#1", msgspec.json.encode(called)))
        await recorded(old, 3)
        works.fail(step, retryable=False)
        await outcome(made.plane, old)
        again, _ = await made.plane.repeats.retry(old.row.task_id)
        assert (await works.step(again.row.task_id, service="echo")).remembered == {"charged": b"7"}
        assert [entry.kind for entry in await history(made.plane, again.row.task_id)] == ["forked"]


async def test_nobody_waits_for_the_beginning_again_and_the_deadline_begins_anew() -> None:
    clock = ManualClock()
    async with world(clock=clock) as made:
        works = Works()
        await works.connect(made.plane)
        old = await submit(made.plane, options=TaskOptions(delay_s=2.0, total_timeout_s=1.0))
        clock.advance(2.5)
        works.fail(await works.delivery(), retryable=False)
        await outcome(made.plane, old)
        new, _ = await made.plane.repeats.retry(old.row.task_id)
        await works.step(new.row.task_id, service="echo")
        assert new.deadline_at == clock.now() + 1.0
        clock.advance(1.5)
        failed = await outcome(made.plane, new)
        assert failed.error is not None
        assert failed.error.code == "LD513"
