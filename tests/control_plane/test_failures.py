"""Steps that fail: what is tried again and when, what ends the task, and that nothing of it is ever in silence."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest
from tests.control_plane.harness import (
    NO_JITTER,
    FakeInstance,
    LinkedRunner,
    World,
    history,
    outcome,
    recorded,
    state_of,
    submit,
    until,
    world,
)
from tests.support.passing import time_passes

from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import NonRetryableError
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Answer, Deliver
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.services import service
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.testing import ManualClock
from llama_deploy.types import ActionTypes, RetryPolicy, ServiceDefinition, TaskDefinition, TaskResult

PATIENT = EngineSettings(lease_s=1e9)
"""So that a fake instance need not say that it lives while the clock is moved."""

SOON = RetryPolicy(max_retries=2, initial_s=1.0, multiplier=3.0, jitter=0.0)


class Published(BaseOrchestrator):
    """As one written for the published system: one message, and it never says that it handles failures."""

    seen: ClassVar[list[str]] = []

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if f"result_{task_def.task_id}" in state:
            return [], state
        return [QueueMessage(type="echo", action=ActionTypes.NEW_TASK, data={"text": "x"})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(result.status)
        state[f"result_{result.task_id}"] = result
        return state


async def fail_until_the_end(made: World, instance: FakeInstance, entry: TaskEntry, **error: Any) -> list[Deliver]:
    """Fail every attempt, moving the clock to each next one; every delivery that there was."""
    first = len(instance.all(Deliver))
    number = first
    while not entry.final:
        number += 1
        delivery = await instance.delivery(number)
        instance.fail(delivery, f"attempt {delivery.attempt}", **error)
        await recorded(entry, 1 + delivery.attempt)
        if not entry.final:
            await until(lambda: made.plane.store.backlog == 0)
            assert len(instance.all(Deliver)) == number, "it was tried again without waiting"
            made.manual.advance(made.plane.engine.settings.overdue_s)
    await outcome(made.plane, entry)
    return list(instance.all(Deliver)[first:])


# --- a policy that handles failures ---------------------------------------------------------------------------------


async def test_a_failed_step_is_tried_again_with_growing_delay_under_the_same_id() -> None:
    async with world(clock=ManualClock(), orchestrator=SimpleOrchestrator(max_retries=3)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        for number, (at_least, at_most) in enumerate([(0.4, 0.6), (0.8, 1.2), (1.6, 2.4)], start=1):
            delivery = await instance.delivery(number)
            assert (delivery.step_id, delivery.attempt) == (f"{entry.row.task_id}:1", number)
            instance.fail(delivery)
            await recorded(entry, number + 1)
            view = made.plane.views.task(entry)
            assert view.state.value == "working"
            assert view.hops == 1
            assert view.waiting_for is not None
            assert view.waiting_for.startswith(f"attempt {number + 1} of echo, due in ")
            step = entry.open[delivery.step_id]
            assert at_least <= step.due_at - made.manual.now() <= at_most
            made.manual.advance(at_least - 0.01)
            assert await made.plane.sweeper.sweep() == 0
            made.manual.advance(at_most - at_least + 0.01)
        instance.answer(await instance.delivery(4), "at last")
        result = await outcome(made.plane, entry)
        assert (result.result, result.attempt) == ("at last", 4)
        assert made.plane.engine.statistics.retries == 3
        entries = await history(made.plane, entry)
        assert [e.kind for e in entries] == ["submitted", "retrying", "retrying", "retrying", "answered"]
        assert [e.attempt for e in entries[1:]] == [1, 2, 3, 4]
        assert entries[1].error is not None
        assert entries[1].error.message == "no"
        assert entries[1].outcome is None


async def test_the_last_failure_is_the_outcome() -> None:
    async with world(clock=ManualClock(), orchestrator=SimpleOrchestrator(max_retries=2), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        deliveries = await fail_until_the_end(made, instance, entry, type="OddError", code="LD502", traceback="...")
        assert [d.attempt for d in deliveries] == [1, 2, 3]
        result = await outcome(made.plane, entry)
        assert (result.status, result.attempt, result.service) == ("failed", 3, "echo")
        assert result.error is not None
        assert (result.error.type, result.error.message, result.error.traceback) == ("OddError", "attempt 3", "...")
        assert await state_of(made.plane, entry) == "failed"


@pytest.mark.parametrize("policy", [SimpleOrchestrator(), Published()], ids=["simple", "published"])
async def test_what_is_not_retryable_ends_the_task_at_once(policy: BaseOrchestrator) -> None:
    @service
    async def echo(text: str) -> str:
        """Refuses."""
        raise NonRetryableError("never")

    async with world(orchestrator=policy) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        result = await outcome(made.plane, await submit(made.plane))
        assert result.error is not None
        assert (result.status, result.attempt, result.error.code) == ("failed", 1, "LD510")
        await local.stop()


@pytest.mark.parametrize("policy", [SimpleOrchestrator(), Published()], ids=["simple", "published"])
async def test_a_service_says_how_long_to_wait(policy: BaseOrchestrator) -> None:
    async with world(clock=ManualClock(), orchestrator=policy, settings=PATIENT) as made:
        instance = FakeInstance(retry=NO_JITTER)
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.fail(await instance.delivery(), retry_after_s=100.0)
        await recorded(entry, 2)
        due_in = next(iter(entry.open.values())).due_at - made.manual.now()
        assert 80 <= due_in <= 120
        made.manual.advance(79)
        assert await made.plane.sweeper.sweep() == 0
        made.manual.advance(41)
        instance.answer(await instance.delivery(2))
        assert (await outcome(made.plane, entry)).status == "completed"


# --- a policy that does not -----------------------------------------------------------------------------------------


async def test_a_published_policy_never_sees_a_failure_and_the_services_settings_apply() -> None:
    Published.seen.clear()
    async with world(clock=ManualClock(), orchestrator=Published()) as made:
        instance = FakeInstance(retry=SOON)
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        for number, delay_s in [(1, 1.0), (2, 3.0)]:
            instance.fail(await instance.delivery(number))
            await recorded(entry, number + 1)
            made.manual.advance(delay_s - 0.001)
            assert await made.plane.sweeper.sweep() == 0
            made.manual.advance(0.001)
        instance.fail(await instance.delivery(3), "the last one")
        result = await outcome(made.plane, entry)
        assert result.error is not None
        assert (result.status, result.error.message, result.attempt) == ("failed", "the last one", 3)
        assert Published.seen == []
        kinds = [(e.kind, e.attempt, e.state.value) for e in await history(made.plane, entry)]
        assert kinds == [
            ("submitted", None, "working"),
            ("retrying", 1, "working"),
            ("retrying", 2, "working"),
            ("answered", 3, "failed"),
        ]
        assert made.plane.engine.statistics.retries == 2


async def test_a_published_policy_sees_the_success_after_failures() -> None:
    Published.seen.clear()
    async with world(clock=ManualClock(), orchestrator=Published()) as made:
        instance = FakeInstance(retry=SOON)
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        instance.fail(await instance.delivery())
        await recorded(entry, 2)
        made.manual.advance(1.0)
        instance.answer(await instance.delivery(2), "good")
        assert (await outcome(made.plane, entry)).result == "good"
        assert Published.seen == ["completed"]


@pytest.mark.parametrize("policy", [SimpleOrchestrator(max_retries=99), Published()], ids=["simple", "published"])
async def test_attempts_have_a_limit_whatever_the_policy_says(policy: BaseOrchestrator) -> None:
    settings = EngineSettings(attempts_max=4, lease_s=1e9)
    async with world(clock=ManualClock(), orchestrator=policy, settings=settings) as made:
        instance = FakeInstance(retry=RetryPolicy(max_retries=99))
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        deliveries = await fail_until_the_end(made, instance, entry)
        assert [d.attempt for d in deliveries] == [1, 2, 3, 4]
        result = await outcome(made.plane, entry)
        assert result.status == "failed"
        assert result.error is not None
        assert "attempt 4" in str(result.error), "the service's own last words are in the outcome"


async def test_what_a_service_says_of_its_retries_counts_with_the_simple_orchestrator_too() -> None:
    async with world(clock=ManualClock(), orchestrator=SimpleOrchestrator(max_retries=9), settings=PATIENT) as made:
        instance = FakeInstance(retry=SOON)
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        deliveries = await fail_until_the_end(made, instance, entry)
        assert [d.attempt for d in deliveries] == [1, 2, 3], "two retries, as the service says, and none of the nine"
        assert (await outcome(made.plane, entry)).status == "failed"


# --- what services do -----------------------------------------------------------------------------------------------


class Rubbish(Service):
    """A service of a third party that answers with whatever it was given."""

    def __init__(self, make: Any) -> None:
        self.definition = ServiceDefinition(service_name="echo", description="", retry=RetryPolicy(max_retries=0))
        self._make = make

    async def run(self, context: StepContext) -> TaskResult | Parked:
        made = self._make()
        if isinstance(made, BaseException):
            raise made
        return made  # type: ignore[no-any-return]


class Silent(Exception):  # noqa: N818 - its name is what is looked for
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise ValueError("no text")


def deep() -> Exception:
    """An error with a very long traceback and a very long message."""

    def down(levels: int) -> None:
        if levels:
            down(levels - 1)
        raise RuntimeError("x" * 10_000_000)

    try:
        down(300)
    except RuntimeError as error:
        return error
    raise AssertionError


BAD_ENDINGS: dict[str, tuple[Any, str]] = {
    "raises": (lambda: ValueError("broken"), "ValueError"),
    "exits": (lambda: SystemExit(3), "SystemExit"),
    "interrupts": (KeyboardInterrupt, "KeyboardInterrupt"),
    "cancels itself": (asyncio.CancelledError, "CancelledError"),
    "times out": (TimeoutError, "TimeoutError"),
    "cannot be shown": (Silent, "Silent"),
    "a huge traceback": (deep, "RuntimeError"),
    "a group": (lambda: ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "ExceptionGroup"),
    "stops iteration": (lambda: StopAsyncIteration(1), "StopAsyncIteration"),
    "bytes": (lambda: b"\xff", "ResultNotSerialisableError"),
    "nothing": (lambda: None, "ResultNotSerialisableError"),
    "an object in a result": (
        lambda: TaskResult(task_id="", history=[], result="", kind="json", value=object()),
        "ResultNotSerialisableError",
    ),
    "a surrogate in a result": (
        lambda: TaskResult.model_construct(task_id="", history=[], result="\ud800"),
        "ResultNotSerialisableError",
    ),
    "an unfit prompt": (lambda: Parked(prompt={"prompt": object()}), "ResultNotSerialisableError"),
}


@pytest.mark.parametrize("policy", [SimpleOrchestrator(0), Published()], ids=["simple", "published"])
@pytest.mark.parametrize("name", BAD_ENDINGS)
async def test_however_a_service_ends_badly_the_task_fails_and_says_why(name: str, policy: BaseOrchestrator) -> None:
    make, kind = BAD_ENDINGS[name]
    async with world(orchestrator=policy) as made:
        local = LinkedRunner([Rubbish(make)])
        await local.connect(made.plane)
        entry = await submit(made.plane)
        result = await outcome(made.plane, entry)
        assert result.status == "failed"
        assert result.error is not None
        assert result.error.type == kind
        assert result.error.message
        assert len(result.model_dump_json()) < 200_000
        assert not local.runner.steps or await until(lambda: not local.runner.steps)
        await local.stop()


async def test_functions_that_return_what_has_no_json_form() -> None:
    @service(retry=RetryPolicy(max_retries=0))
    async def echo(text: str) -> Any:
        """Returns it."""
        return {"surrogate": "\ud800", "object": object(), "infinite": float("inf")}[text]

    async with world(orchestrator=SimpleOrchestrator(0)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        for text in ("surrogate", "object", "infinite"):
            result = await outcome(made.plane, await submit(made.plane, text=text))
            assert result.error is not None, text
            assert (result.status, result.error.code) == ("failed", "LD504"), text
        await local.stop()


async def test_a_hang_meets_the_run_deadline_and_is_tried_again() -> None:
    runs: list[int] = []

    @service(run_timeout_s=60)
    async def echo(text: str) -> str:
        """Hangs, but for its second run."""
        runs.append(len(runs))
        if len(runs) == 1:
            await asyncio.Event().wait()
        return text

    async with world(clock=ManualClock()) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        entry = await submit(made.plane)
        await until(lambda: runs)
        await time_passes(60.0)
        await recorded(entry, 2)
        failed = (await history(made.plane, entry))[1]
        assert failed.error is not None
        assert (failed.error.code, failed.error.retryable) == ("LD503", True)
        assert "run_timeout_s" in failed.error.message
        made.manual.advance(1.0)
        assert (await outcome(made.plane, entry)).attempt == 2
        await local.stop()


async def test_a_result_over_the_limit_names_the_setting() -> None:
    @service
    async def echo(text: str) -> str:
        """Too much."""
        return "x" * int(text)

    settings = EngineSettings(payload_bytes_max=2000)
    async with world(settings=settings) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        assert (await outcome(made.plane, await submit(made.plane, text="100"))).status == "completed"
        result = await outcome(made.plane, await submit(made.plane, text="5000"))
        assert result.status == "failed"
        assert result.error is not None
        assert "payload_bytes_max" in result.error.message
        assert not result.error.retryable
        await local.stop()


async def test_rubbish_in_the_place_of_a_result() -> None:
    rubbish = [b"", b"{", b"[]", b"null", b'{"result": 5}', b"\xff\xfe", b'{"status": 1}', b'{"result": "\\ud800"}']
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        for number, encoded in enumerate(rubbish, 1):
            entry = await submit(made.plane)
            await instance.delivery(number)
            instance.send(Answer(f"{entry.row.task_id}:1", 1, encoded, 1.0, 2.0))
            result = await outcome(made.plane, entry)
            assert result.status == "failed", encoded
            assert result.error is not None
            assert result.error.code == "LD201"
