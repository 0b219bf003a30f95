"""What a step's code has remembered: recorded once, given to every later attempt, whatever dies in between."""

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
from tests.support import DEADLINE_S

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages import frames
from llama_deploy.services import ServiceContext, service

AGAIN = NO_JITTER.model_copy(update={"initial_s": 0.0})


def remember(step: frames.Deliver, value: Any, key: str = "k", attempt: int | None = None) -> frames.Remember:
    return frames.Remember(step.step_id, attempt or step.attempt, key, msgspec.json.encode(value))


def said(operation: frames.Remembered) -> Any:
    """The value that an instance was told, or the code of the refusal."""
    if operation.problem:
        return msgspec.json.decode(operation.problem)["code"]
    return msgspec.json.decode(operation.value)


# --- the engine -------------------------------------------------------------------------------------------------------


async def test_a_value_is_recorded_before_it_is_told_and_goes_to_the_next_attempt(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        step = await instance.delivery()
        assert step.remembered is None
        instance.send(remember(step, {"paid": 5}))
        assert said(await instance.got(frames.Remembered)) == {"paid": 5}
        (recorded,) = [one for one in await history(made.plane, entry) if one.kind == "remembered"]
        assert (recorded.key, recorded.value, recorded.attempt, recorded.by) == ("k", {"paid": 5}, 1, "one")
        instance.drop()
        other = FakeInstance(instance_id="two")
        await other.connect(made.plane)
        again = await other.delivery()
        assert (again.attempt, again.remembered) == (2, {"k": b'{"paid":5}'})


async def test_a_value_survives_a_crash_of_the_control_plane(tmp_path: Path) -> None:
    made = World(tmp_path / "s.db", settings=EngineSettings(recovery_grace_s=0.05))
    instance = FakeInstance()
    await instance.connect(await made.start())
    await submit(made.plane)
    step = await instance.delivery()
    instance.send(remember(step, 1))
    await instance.got(frames.Remembered)
    await made.crash()
    await instance.connect(await made.start(), held=[(step.step_id, 1)])
    instance.send(remember(step, 2))  # asked again: the answer was lost
    assert said(await instance.got(frames.Remembered, 2)) == 1
    await made.stop()


async def test_the_first_value_stays_and_an_old_attempt_is_given_it() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        step = await instance.delivery()
        made.plane.signals.lost([step.step_id], "one", "test")
        await instance.delivery(2)
        instance.send(remember(step, "new", attempt=2), remember(step, "old", attempt=1))
        await instance.got(frames.Remembered, 2)
        assert [said(op) for op in instance.all(frames.Remembered)] == ["new", "new"]
        instance.send(remember(step, "old", key="another", attempt=1))
        assert said(await instance.got(frames.Remembered, 3)) == "LD540"
        assert [one.key for one in await history(made.plane, entry) if one.kind == "remembered"] == ["k"]


async def test_nothing_is_remembered_for_a_task_that_has_ended_or_never_was() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        step = await instance.delivery()
        await made.plane.signals.cancel(entry.row.task_id)
        instance.send(remember(step, 1), frames.Remember("nothing:1", 1, "k", b"1"))
        await instance.got(frames.Remembered, 2)
        assert [said(op) for op in instance.all(frames.Remembered)] == ["LD540", "LD540"]


@pytest.mark.parametrize(
    ("key", "value", "code"), [("", b"1", "LD201"), ("k" * 201, b"1", "LD201"), ("k", b"{", "LD201")]
)
async def test_what_cannot_be_recorded_is_refused_and_changes_nothing(key: str, value: bytes, code: str) -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        step = await instance.delivery()
        instance.send(frames.Remember(step.step_id, 1, key, value))
        assert said(await instance.got(frames.Remembered)) == code
        assert len(await history(made.plane, entry)) == 1


async def test_count_and_size_have_limits() -> None:
    async with world(settings=EngineSettings(remembered_per_step_max=2, remembered_bytes_max=10)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane)
        step = await instance.delivery()
        instance.send(remember(step, "x" * 20, "large"), remember(step, 1, "a"), remember(step, 2, "b"))
        instance.send(remember(step, 3, "c"))
        await instance.got(frames.Remembered, 4)
        told = {op.key: said(op) for op in instance.all(frames.Remembered)}
        assert told == {"large": "LD208", "a": 1, "b": 2, "c": "LD208"}


# --- the code of a service --------------------------------------------------------------------------------------------


async def test_every_later_attempt_is_given_the_value() -> None:
    called: list[int] = []

    @service(retry=AGAIN)
    async def pay(amount: int, context: ServiceContext) -> Any:
        async def charge() -> dict[str, int]:
            called.append(context.attempt)
            return {"charged": amount}

        receipt = await context.once("charge", charge)
        if context.attempt < 3:
            raise ConnectionError("lost")
        return receipt

    async with world() as made:
        local = LinkedRunner([pay])
        await local.connect(made.plane)
        result = await outcome(made.plane, await submit(made.plane, "pay", '{"amount": 5}'))
        assert result.value == {"charged": 5}
        assert called == [1]
        await local.stop()


async def test_code_in_a_thread_has_a_blocking_form() -> None:
    called: list[int] = []

    @service(retry=AGAIN)
    def pay(context: ServiceContext) -> Any:
        def charge() -> int:
            called.append(context.attempt)
            return 7

        receipt = context.blocking.once("charge", charge)
        if context.attempt < 2:
            raise ConnectionError("lost")
        return receipt

    async with world() as made:
        local = LinkedRunner([pay])
        await local.connect(made.plane)
        assert (await outcome(made.plane, await submit(made.plane, "pay", "{}"))).value == 7
        assert called == [1]
        await local.stop()


async def test_two_calls_at_once_call_one_function() -> None:
    called: list[int] = []

    @service
    async def twice(context: ServiceContext) -> Any:
        async def slow() -> int:
            called.append(1)
            await asyncio.sleep(0)
            return len(called)

        return await asyncio.gather(*[context.once("k", slow) for _ in range(3)])

    async with world() as made:
        local = LinkedRunner([twice])
        await local.connect(made.plane)
        assert (await outcome(made.plane, await submit(made.plane, "twice", "{}"))).value == [1, 1, 1]
        await local.stop()


async def test_a_function_that_raises_leaves_nothing() -> None:
    @service(retry=AGAIN)
    async def fails(context: ServiceContext) -> Any:
        def work() -> int:
            if context.attempt == 1:
                raise ValueError("not yet")
            return context.attempt

        return await context.once("k", work)

    async with world() as made:
        local = LinkedRunner([fails])
        await local.connect(made.plane)
        assert (await outcome(made.plane, await submit(made.plane, "fails", "{}"))).value == 2
        await local.stop()


async def test_a_refusal_and_a_value_without_a_json_form_are_raised_where_they_arise() -> None:
    codes: list[str] = []

    @service
    async def large(context: ServiceContext) -> str:
        for made_by in (lambda: "x" * 100, lambda: b"bytes"):
            try:
                await context.once("k", made_by)
            except LlamaDeployError as error:
                codes.append(error.code)
        return "done"

    async with world(settings=EngineSettings(remembered_bytes_max=10)) as made:
        local = LinkedRunner([large])
        await local.connect(made.plane)
        await outcome(made.plane, await submit(made.plane, "large", "{}"))
        assert codes == ["LD208", "LD504"]
        await local.stop()


async def test_what_is_open_is_asked_again_after_a_restart(tmp_path: Path) -> None:
    called: list[str] = []
    go_on = asyncio.Event()

    @service
    async def pay(context: ServiceContext) -> Any:
        def charge() -> str:
            called.append("paid")
            return "receipt"

        await go_on.wait()
        return await context.once("k", charge)

    made = World(tmp_path / "s.db", settings=EngineSettings(recovery_grace_s=0.05))
    local = LinkedRunner([pay])
    await local.connect(await made.start())
    entry = await submit(made.plane, "pay", "{}")
    await until(lambda: local.runner.steps)
    await made.crash()
    go_on.set()
    await until(lambda: called)  # it waits for a control plane that is not there
    await local.connect(await made.start())
    result = await outcome(made.plane, entry.row.task_id)
    assert (result.result, result.attempt, called) == ("receipt", 1, ["paid"])
    await local.stop()
    await made.stop()


async def test_a_thread_that_waits_is_told_that_the_task_was_canceled() -> None:
    raised: list[str] = []
    begun, held = threading.Event(), threading.Event()

    @service
    def pay(context: ServiceContext) -> None:
        begun.set()
        held.wait(DEADLINE_S)
        try:
            context.blocking.once("k", lambda: 1)
        except LlamaDeployError as error:
            raised.append(error.code)

    async with world() as made:
        local = LinkedRunner([pay])
        await local.connect(made.plane)
        entry = await submit(made.plane, "pay", "{}")
        await until(begun.is_set)
        await made.plane.signals.cancel(entry.row.task_id)
        await until(lambda: not local.runner.steps)
        held.set()
        await until(lambda: raised == ["LD540"])
        await local.stop()


async def test_the_blocking_form_is_refused_on_the_loop() -> None:
    @service
    async def wrong(context: ServiceContext) -> Any:
        return context.blocking.once("k", lambda: 1)

    async with world() as made:
        local = LinkedRunner([wrong])
        await local.connect(made.plane)
        result = await outcome(made.plane, await submit(made.plane, "wrong", "{}"))
        assert result.error is not None
        assert "event loop" in result.error.message
        await local.stop()


async def test_a_task_that_remembers_nothing_costs_what_it_did() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane)
        step = await instance.delivery()
        assert made.plane.engine.cache.tasks[step.task_id].open[step.step_id].memos is None
