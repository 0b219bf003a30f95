"""Services that call services: one child per call, whatever dies; no place is taken while a step waits."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.control_plane.harness import (
    NO_JITTER,
    FakeInstance,
    LinkedRunner,
    World,
    history,
    outcome,
    submit,
    until,
    world,
)
from tests.support.passing import time_passes
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.children import child_of
from llama_deploy.errors import LlamaDeployError, StoreUnavailableError, TaskFailed, WaitTimeoutError
from llama_deploy.messages import QueueMessage, frames
from llama_deploy.orchestrators import BaseOrchestrator, Sequence, get_result_key
from llama_deploy.services import HumanService, ServiceContext, WorkflowService, current_step, service
from llama_deploy.state_stores.base import Condition, TaskFilter
from llama_deploy.testing import ManualClock
from llama_deploy.types import ServiceLimits, TaskOptions

ONCE = TaskOptions.model_validate({"retry": {"max_retries": 0}})
AGAIN = NO_JITTER.model_copy(update={"initial_s": 0.0})
QUICK = EngineSettings(recovery_grace_s=0.05)


@service
async def double(number: int) -> int:
    return number * 2


@service
async def fails() -> None:
    raise ValueError("no such thing")


def call(step: frames.Deliver, other: str = "other", text: str = "in", key: str = "#1", **fields: Any) -> frames.Call:
    body = msgspec.json.encode({"input": text, "agent_id": other, **fields})
    return frames.Call(step.step_id, step.attempt, key, body)


def code(returned: frames.Returned) -> str:
    return str(msgspec.json.decode(returned.problem)["code"]) if returned.problem else ""


async def children_of(plane: ControlPlane, task_id: str) -> list[Any]:
    """The rows of the tasks that a task has called, oldest first."""
    origin = Condition(column="origin", values=(f"child:{task_id}",))
    where = TaskFilter(conditions=(origin,), oldest_first=True)
    return list((await plane.store.list_tasks(where, limit=100)).rows)


async def ran(plane: ControlPlane, services: list[Any], name: str, text: str = "{}") -> Any:
    """The outcome of one task, with services in this process."""
    local = LinkedRunner(services)
    await local.connect(plane)
    result = await outcome(plane, await submit(plane, name, text))
    await local.stop()
    return result


# --- what a call is ---------------------------------------------------------------------------------------------------


class Blind(BaseOrchestrator):
    """Has the same done for every task, whatever service it names, as one's own orchestrators may."""

    async def get_next_messages(
        self, task_def: Any, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if state.setdefault(task_def.task_id, False):
            return [], state
        state[task_def.task_id] = True
        return [QueueMessage(type="asks", data={})], state

    async def add_result_to_state(self, result: Any, state: dict[str, Any]) -> dict[str, Any]:
        state[get_result_key(result.task_id)] = result
        return state


@pytest.mark.parametrize("policy", [Sequence("asks"), Blind()], ids=["of the catalogue", "one's own"])
async def test_a_call_is_for_the_service_that_it_names_whatever_the_orchestrator_does(
    policy: BaseOrchestrator, tmp_path: Path
) -> None:
    @service
    async def asks(context: ServiceContext) -> int:
        doubled: int = await context.call("double", number=4)
        return doubled + 1

    made = World(tmp_path / "s.db", orchestrator=policy)
    async with asyncio.timeout(30):
        plane = await made.start()
        local = LinkedRunner([asks, double])
        await local.connect(plane)
        entry = await submit(plane, "asks", "{}")
        assert (await outcome(plane, entry)).value == 9
        (child,) = await children_of(plane, entry.row.task_id)
        assert child.service == "double"
        await local.stop()
        await made.stop()


async def test_a_called_task_that_a_restart_finds_goes_on_as_it_began(tmp_path: Path) -> None:
    made = World(tmp_path / "s.db", orchestrator=Blind(), settings=QUICK)
    one = FakeInstance(("asks", "other"))
    await one.connect(await made.start())
    entry = await submit(made.plane, "asks")
    step = await one.delivery()
    one.send(call(step))
    child = await one.delivery(2)
    assert child.service == "other"
    await made.crash()
    two = FakeInstance(("asks", "other"), instance_id="two")
    await two.connect(await made.start())
    for number in (1, 2):
        delivered = await two.delivery(number)
        if delivered.service == "asks":
            two.send(call(delivered))
        else:
            two.answer(delivered, "called")
    returned = await two.got(frames.Returned)
    assert msgspec.json.decode(returned.result)["result"] == "called"
    await made.plane.signals.cancel(entry.row.task_id)
    await made.stop()


async def test_a_call_returns_what_the_other_service_returned() -> None:
    @service
    async def sums(context: ServiceContext) -> Any:
        return await asyncio.gather(*[context.call("double", number=number) for number in range(3)])

    async with world() as made:
        assert (await ran(made.plane, [sums, double], "sums")).value == [0, 2, 4]


async def test_code_in_a_thread_and_code_without_a_context_can_call() -> None:
    @service
    def in_thread(context: ServiceContext) -> Any:
        return context.blocking.call("double", number=4) + current_step().blocking.call("double", input='{"number": 1}')

    async with world() as made:
        assert (await ran(made.plane, [in_thread, double], "in_thread")).value == 10


async def test_the_step_of_a_workflow_can_call_with_a_key() -> None:
    codes: list[str] = []

    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            try:
                await current_step().call("double", number=1)
            except LlamaDeployError as error:
                codes.append(error.code)
            kept = await current_step().once("k", lambda: 5)
            return StopEvent(result=kept + await current_step().call("double", key="a", number=4))

    async with world() as made:
        assert (await ran(made.plane, [WorkflowService(Flow(), name="flow"), double], "flow")).value == 13
        assert codes == ["LD510"]


async def test_the_child_is_a_task_that_says_where_it_comes_from() -> None:
    async with world() as made:
        instance = FakeInstance(["parent", "other"])
        await instance.connect(made.plane)
        parent = await submit(made.plane, "parent")
        step = await instance.delivery()
        instance.send(call(step, options={"run_timeout_s": 5.0}))
        inner = await instance.delivery(2)
        (row,) = await children_of(made.plane, parent.row.task_id)
        assert (row.task_id, row.origin) == (child_of(step.step_id, "#1"), f"child:{parent.row.task_id}")
        child = await made.plane.engine.cache.get(row.task_id)
        options = child.definition.options
        assert options is not None
        assert options.origin is not None
        assert (options.origin.step_id, options.origin.depth, options.run_timeout_s) == (step.step_id, 1, 5.0)
        view = made.plane.views.task(parent)
        assert view.waiting_for == f"task that parent called: {row.task_id}"
        (called,) = [one for one in await history(made.plane, parent) if one.kind == "called"]
        assert (called.child, called.key, called.attempt) == (row.task_id, "#1", 1)
        instance.answer(inner, "out")
        returned = await instance.got(frames.Returned)
        assert (returned.state, msgspec.json.decode(returned.result)["result"]) == ("completed", "out")
        assert made.plane.views.task(parent).waiting_for is None


async def test_only_the_caller_is_told_of_the_end_of_a_child() -> None:
    @service
    async def calls(context: ServiceContext) -> Any:
        return await context.call("double", number=1)

    told: list[str] = []
    async with world() as made:
        person = HumanService(notify=lambda result: told.append(result.task_id))
        local = LinkedRunner([calls, double, person])
        await local.connect(made.plane)
        entry = await submit(made.plane, "calls", "{}")
        await outcome(made.plane, entry)
        await until(lambda: told)
        await until(lambda: not local.runner.steps)
        assert told == [entry.row.task_id]
        await local.stop()


async def test_a_failed_child_raises_its_error_and_is_not_tried_again_by_the_parent() -> None:
    attempts: list[int] = []
    seen: list[Any] = []

    @service(retry=AGAIN)
    async def calls(context: ServiceContext) -> Any:
        attempts.append(context.attempt)
        try:
            return await context.call("fails", options={"retry": {"max_retries": 0}})
        except TaskFailed as error:
            seen.append((error.error.type, error.error.message, error.task_id))
            raise

    async with world() as made:
        result = await ran(made.plane, [calls, fails], "calls")
        assert (result.error.code, attempts) == ("LD501", [1])
        assert seen == [("ValueError", "no such thing", child_of(result.step_id, "#1"))]


async def test_a_call_of_nobody_is_refused_and_may_wait_for_the_service() -> None:
    codes: list[str] = []

    @service
    async def calls(context: ServiceContext) -> Any:
        try:
            await context.call("dobule", key="typo", number=1)
        except LlamaDeployError as error:
            codes.append(error.code)
        return await context.call("late", wait_for_service=True, number=1)

    @service
    async def late(number: int) -> int:
        return number

    async with world() as made:
        local, other = LinkedRunner([calls]), LinkedRunner([late], instance_id="other")
        await local.connect(made.plane)
        entry = await submit(made.plane, "calls", "{}")
        await until(lambda: made.plane.views.task(entry).waiting_for)
        await other.connect(made.plane)
        assert (await outcome(made.plane, entry)).value == 1
        assert codes == ["LD202"]
        await local.stop()
        await other.stop()


# --- a call is made once ----------------------------------------------------------------------------------------------


async def test_a_later_attempt_finds_what_an_earlier_one_called() -> None:
    called: list[int] = []

    @service(retry=AGAIN)
    async def calls(context: ServiceContext) -> Any:
        values = [await context.call("counts", text="a"), await context.call("counts", key="b", text="b")]
        if context.attempt < 3:
            raise ConnectionError("lost")
        return values

    @service
    async def counts(text: str) -> str:
        called.append(len(called))
        return f"{text}{called[-1]}"

    async with world() as made:
        assert (await ran(made.plane, [calls, counts], "calls")).value == ["a0", "b1"]
        assert called == [0, 1]


async def test_another_request_under_the_same_number_is_refused_and_says_what_to_do() -> None:
    @service(retry=AGAIN)
    async def calls(context: ServiceContext) -> Any:
        await context.call("double", number=context.attempt)
        raise ConnectionError("lost")

    async with world() as made:
        result = await ran(made.plane, [calls, double], "calls")
        assert (result.error.code, result.attempt) == ("LD541", 2)
        assert "key=" in result.error.fix


async def test_another_instance_takes_over_and_finds_the_child() -> None:
    async with world() as made:
        one, two, other = FakeInstance(["parent"]), FakeInstance(["parent"], instance_id="two"), FakeInstance(["other"])
        other.instance_id = "other"
        for instance in (one, other):
            await instance.connect(made.plane)
        parent = await submit(made.plane, "parent")
        one.send(call(await one.delivery()))
        inner = await other.delivery()
        await two.connect(made.plane)
        one.drop()
        again = await two.delivery()
        assert again.attempt == 2
        two.send(call(again))
        await until(lambda: made.plane.views.task(parent).waiting_for)
        other.answer(inner, "out")
        assert (await two.got(frames.Returned)).state == "completed"
        assert len(await children_of(made.plane, parent.row.task_id)) == 1


async def test_the_loss_of_the_childs_instance_is_its_own_affair() -> None:
    async with world() as made:
        parent, first, second = FakeInstance(["parent"]), FakeInstance(["other"]), FakeInstance(["other"])
        first.instance_id, second.instance_id = "first", "second"
        await parent.connect(made.plane)
        await first.connect(made.plane)
        await submit(made.plane, "parent")
        parent.send(call(await parent.delivery()))
        await first.delivery()
        first.drop()
        await second.connect(made.plane)
        second.answer(await second.delivery(), "out")
        assert (await parent.got(frames.Returned)).attempt == 1


@pytest.mark.parametrize("ends_while_away", [False, True])
async def test_a_restart_of_the_control_plane(tmp_path: Path, *, ends_while_away: bool) -> None:
    go_on = asyncio.Event()
    attempts: list[int] = []

    @service
    async def calls(context: ServiceContext) -> Any:
        attempts.append(context.attempt)
        return await context.call("slow")

    @service
    async def slow() -> str:
        await go_on.wait()
        return "done"

    made = World(tmp_path / "s.db", settings=QUICK)
    local = LinkedRunner([calls, slow])
    await local.connect(await made.start())
    entry = await submit(made.plane, "calls", "{}")
    await until(lambda: len(local.runner.steps) == 2)
    await made.crash()
    if ends_while_away:
        go_on.set()
        await until(lambda: any(step.answer for step in local.runner.steps.values()))
    await local.connect(await made.start())
    go_on.set()
    assert (await outcome(made.plane, entry.row.task_id)).result == "done"
    assert attempts == [1]
    assert len(await children_of(made.plane, entry.row.task_id)) == 1
    await local.stop()
    await made.stop()


async def test_a_lost_connection_of_the_caller(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        parent, other = FakeInstance(["parent"]), FakeInstance(["other"], instance_id="other")
        await parent.connect(made.plane)
        await other.connect(made.plane)
        await submit(made.plane, "parent")
        step = await parent.delivery()
        parent.send(call(step))
        inner = await other.delivery()
        parent.drop()
        other.answer(inner, "out")
        await other.acknowledged(inner)
        await parent.connect(made.plane, held=[(step.step_id, 1)])
        parent.send(call(step))
        assert (await parent.got(frames.Returned)).state == "completed"


async def test_a_crash_between_the_call_and_its_task(tmp_path: Path) -> None:
    made = World(tmp_path / "s.db", settings=QUICK)
    parent = FakeInstance(["parent", "other"])
    await parent.connect(await made.start())
    entry = await submit(made.plane, "parent")
    step = await parent.delivery()
    made.plane.engine.submissions.submit = lambda *_: None  # type: ignore[method-assign]
    parent.send(call(step))
    await until(lambda: entry.settled_seq == 2)
    await made.crash()
    await parent.connect(await made.start(), held=[(step.step_id, 1)])
    parent.send(call(step))
    parent.answer(await parent.delivery(2), "out")
    assert (await parent.got(frames.Returned)).state == "completed"
    assert [one.kind for one in await history(made.plane, entry.row.task_id)] == ["submitted", "called"]
    await made.stop()


# --- places and time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [False, True])
async def test_a_service_may_call_itself_with_one_place(*, threads: bool) -> None:
    @service(concurrency=1, name="down")
    async def in_loop(number: int, context: ServiceContext) -> int:
        return number + (await context.call("down", number=number - 1) if number else 0)

    @service(concurrency=1, name="down")
    def in_thread(number: int, context: ServiceContext) -> int:
        below: int = context.blocking.call("down", number=number - 1) if number else 0
        return number + below

    async with world() as made:
        result = await ran(made.plane, [in_thread if threads else in_loop], "down", '{"number": 5}')
        assert result.value == 15


async def test_a_step_goes_on_when_there_is_a_place_and_before_anything_new() -> None:
    async with world() as made:
        parent = FakeInstance(["parent"], concurrency=1)
        other = FakeInstance(["other"], instance_id="other")
        await parent.connect(made.plane)
        await other.connect(made.plane)
        await submit(made.plane, "parent")
        step = await parent.delivery()
        parent.send(call(step))
        await submit(made.plane, "parent")
        await submit(made.plane, "parent")
        second = await parent.delivery(2)  # in the place of the step that waits
        view = made.plane.views.service("parent").instances[0]
        assert (view.running, view.waiting) == (1, 1)
        other.answer(await other.delivery(), "out")
        caller = made.plane.engine.cache.tasks[step.task_id]
        await until(lambda: made.plane.views.task(caller).waiting_for == "a place at its instance of parent")
        assert parent.all(frames.Returned) == []
        parent.answer(second)
        await parent.got(frames.Returned)
        assert len(parent.all(frames.Deliver)) == 2
        parent.answer(step)
        await parent.delivery(3)
        view = made.plane.views.service("parent").instances[0]
        assert (view.running, view.waiting) == (1, 0)


async def test_a_step_that_stops_waiting_takes_its_place_and_the_child_goes_on() -> None:
    @service
    async def calls(context: ServiceContext) -> str:
        try:
            await context.call("slow", timeout_s=0.01)
        except WaitTimeoutError:
            await submitted.wait()
            return "went on"
        return "?"

    submitted, go_on = asyncio.Event(), asyncio.Event()

    @service
    async def slow() -> None:
        await go_on.wait()

    async with world() as made:
        local = LinkedRunner([calls, slow])
        await local.connect(made.plane)
        entry = await submit(made.plane, "calls", "{}")
        await until(lambda: len(local.runner.steps) == 2)
        await until(lambda: made.plane.views.service("calls").running == 1)
        assert made.plane.views.task(entry).waiting_for is None
        submitted.set()
        assert (await outcome(made.plane, entry)).result == "went on"
        (row,) = await children_of(made.plane, entry.row.task_id)
        canceled = await outcome(made.plane, row.task_id)
        assert canceled.status == "canceled"
        await local.stop()


async def test_the_run_deadline_stands_still_while_a_step_waits() -> None:
    go_on = asyncio.Event()

    @service(run_timeout_s=60)
    async def calls(context: ServiceContext) -> Any:
        await context.call("slow")
        return context.attempt

    @service
    async def slow() -> None:
        await go_on.wait()

    settings = EngineSettings(run_timeout_grace_s=0.05, overdue_s=0.05)
    async with world(clock=ManualClock(), settings=settings) as made:
        local = LinkedRunner([calls, slow])
        await local.connect(made.plane)
        entry = await submit(made.plane, "calls", "{}")
        await until(lambda: len(local.runner.steps) == 2)
        await time_passes(300.0)  # longer than `calls` may run, and not than `slow` may
        made.manual.advance(300.0)
        await until(lambda: not made.plane.sweeper._wake.is_set())
        go_on.set()
        assert (await outcome(made.plane, entry)).value == 1
        await local.stop()


@pytest.mark.parametrize("waits_for", ["children", "one after the other"])
async def test_a_service_with_a_limit_may_call_itself(waits_for: str) -> None:
    @service
    async def down(number: int, context: ServiceContext) -> Any:
        if waits_for == "children":
            return number + (await context.call("down", number=number - 1) if number else 0)
        return sum([await context.call("down", number=0) for _ in range(number)]) + 1

    down.definition.limits = ServiceLimits(running_max=1)
    async with world() as made:
        result = await ran(made.plane, [down], "down", '{"number": 4}')
        assert result.value == (10 if waits_for == "children" else 5)


async def test_depth_and_number_have_limits() -> None:
    @service
    async def for_ever(context: ServiceContext) -> Any:
        return await context.call("for_ever")

    @service
    async def many(context: ServiceContext) -> Any:
        return [await context.call("double", number=1) for _ in range(3)]

    async with world(settings=EngineSettings(call_depth_max=3, calls_per_task_max=2)) as made:
        local = LinkedRunner([for_ever, many, double])
        await local.connect(made.plane)
        entry = await submit(
            made.plane, "for_ever", "{}", options=TaskOptions.model_validate({"retry": {"max_retries": 0}})
        )
        await outcome(made.plane, entry)
        listing = await made.plane.store.list_tasks(TaskFilter(), limit=10)
        assert len(listing.rows) == 4
        assert {row.error for row in listing.rows} == {"LD501", "LD208"}
        result = await outcome(
            made.plane,
            await submit(made.plane, "many", "{}", options=ONCE),
        )
        assert result.error is not None
        assert result.error.code == "LD208"
        await local.stop()


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_canceling_a_task_cancels_what_it_called_all_the_way_down() -> None:
    async with world() as made:
        instance = FakeInstance(["a", "b", "c"])
        await instance.connect(made.plane)
        parent = await submit(made.plane, "a")
        instance.send(call(await instance.delivery(1), "b"))
        instance.send(call(await instance.delivery(2), "c"))
        last = await instance.delivery(3)
        await made.plane.signals.cancel(parent.row.task_id, reason="enough", by="me")
        assert (await outcome(made.plane, last.task_id)).status == "canceled"
        (entry,) = [one for one in await history(made.plane, last.task_id) if one.kind == "canceled"]
        assert entry.by == "its caller"
        assert "canceled" in (entry.reason or "")
        await until(lambda: {op.step_id for op in instance.all(frames.CancelStep)} >= {last.step_id})


async def test_a_crash_between_the_end_of_a_task_and_that_of_its_children(tmp_path: Path) -> None:
    made = World(tmp_path / "s.db", settings=QUICK)
    instance = FakeInstance(["parent", "other"])
    await instance.connect(await made.start())
    parent = await submit(made.plane, "parent")
    instance.send(call(await instance.delivery()))
    inner = await instance.delivery(2)
    made.plane.engine.parent_ended = lambda _: None
    await made.plane.signals.cancel(parent.row.task_id)
    await made.crash()
    await made.start()
    assert (await outcome(made.plane, inner.task_id)).status == "canceled"
    await made.stop()


class Gone:
    """Has the sessions of a control plane led by another one for a while, which cancels a task of theirs."""

    def __init__(self, plane: ControlPlane, task_id: str) -> None:
        self._plane, self._task_id = plane, task_id

    async def back(self) -> None:
        """Away, and back."""
        entry = self._plane.engine.cache.tasks[self._task_id]
        self._plane.takeover._forget(entry)
        entry.tell_moved()
        await self._plane.signals.cancel(self._task_id, reason="enough", by="me")
        assert (await outcome(self._plane, self._task_id)).status == "canceled"


async def test_a_call_that_could_not_be_submitted_is_not_once_its_task_was_canceled_elsewhere() -> None:
    clock = ManualClock()
    async with world(clock=clock, settings=EngineSettings(lease_s=1e9)) as made:
        instance = FakeInstance(["parent", "other"])
        await instance.connect(made.plane)
        parent = (await submit(made.plane, "parent")).row.task_id
        submissions, tried = made.plane.engine.submissions, 0
        submit_now = submissions.submit

        def cannot(definition: Any, done: Any, **_: Any) -> None:
            nonlocal tried
            tried += 1
            done(None, StoreUnavailableError("the store cannot be written at the moment"))

        submissions.submit = cannot  # type: ignore[method-assign]
        instance.send(call(await instance.delivery()))
        await until(lambda: tried == 1)
        await Gone(made.plane, parent).back()
        submissions.submit = submit_now  # type: ignore[method-assign]
        clock.advance(1.0)
        assert code(await instance.got(frames.Returned)) == "LD540"
        assert await children_of(made.plane, parent) == []


async def test_a_child_that_is_recorded_while_its_parent_is_canceled_elsewhere_is_canceled() -> None:
    async with world(clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        instance = FakeInstance(["parent", "other"])
        await instance.connect(made.plane)
        parent = (await submit(made.plane, "parent")).row.task_id
        submissions = made.plane.engine.submissions
        submit_now, held = submissions.submit, []

        def hold(definition: Any, done: Any, **_: Any) -> None:
            held.append((definition, done))

        submissions.submit = hold  # type: ignore[method-assign]
        instance.send(call(await instance.delivery()))
        await until(lambda: held)
        await Gone(made.plane, parent).back()
        submit_now(*held[0])
        inner = await instance.delivery(2)
        assert (await outcome(made.plane, inner.task_id)).status == "canceled"


async def test_children_that_go_on_after_a_restart_are_left_alone(tmp_path: Path) -> None:
    made = World(tmp_path / "s.db", settings=QUICK)
    instance = FakeInstance(["parent", "other"])
    await instance.connect(await made.start())
    await submit(made.plane, "parent")
    step = await instance.delivery()
    instance.send(call(step))
    inner = await instance.delivery(2)
    await made.crash()
    await made.start()
    await made.plane.children.recover()
    await instance.connect(made.plane, held=[(step.step_id, 1), (inner.step_id, 1)])
    instance.send(call(step))
    instance.answer(inner, "out")
    assert (await instance.got(frames.Returned)).state == "completed"
    await made.stop()


async def test_an_attempt_that_is_not_wanted_any_more_calls_nobody() -> None:
    async with world() as made:
        instance = FakeInstance(["parent", "other"])
        await instance.connect(made.plane)
        parent = await submit(made.plane, "parent")
        step = await instance.delivery()
        await made.plane.signals.cancel(parent.row.task_id)
        instance.send(call(step), call(msgspec.structs.replace(step, step_id="nothing:1")))
        await instance.got(frames.Returned, 2)
        assert [code(op) for op in instance.all(frames.Returned)] == ["LD540", "LD540"]
        assert await children_of(made.plane, parent.row.task_id) == []


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"input": 1}', b'{"input": "x", "options": {"colour": 1}}'])
async def test_a_call_that_is_none_is_refused(body: bytes) -> None:
    async with world() as made:
        instance = FakeInstance(["parent"])
        await instance.connect(made.plane)
        entry = await submit(made.plane, "parent")
        step = await instance.delivery()
        instance.send(frames.Call(step.step_id, 1, "k", body))
        assert code(await instance.got(frames.Returned)) == "LD201"
        assert entry.row.version == 1


async def test_a_thread_that_waits_for_a_child_is_woken_when_its_task_is_canceled() -> None:
    raised: list[str] = []
    begun = threading.Event()

    @service
    def calls(context: ServiceContext) -> None:
        begun.set()
        try:
            context.blocking.call("slow")
        except LlamaDeployError as error:
            raised.append(error.code)

    @service
    async def slow() -> None:
        await asyncio.Event().wait()

    async with world() as made:
        local = LinkedRunner([calls, slow])
        await local.connect(made.plane)
        entry = await submit(made.plane, "calls", "{}")
        await until(lambda: len(local.runner.steps) == 2)
        await made.plane.signals.cancel(entry.row.task_id)
        await until(lambda: raised == ["LD540"])
        await until(lambda: not local.runner.steps)
        await local.stop()


async def test_a_task_that_calls_nobody_costs_what_it_did() -> None:
    async with world() as made:
        local = LinkedRunner([double])
        await local.connect(made.plane)
        before = made.plane.store.statistics.transitions
        entry = await submit(made.plane, "double", '{"number": 1}')
        await outcome(made.plane, entry)
        assert made.plane.store.statistics.transitions - before == 2
        assert entry.children is None
        await local.stop()
