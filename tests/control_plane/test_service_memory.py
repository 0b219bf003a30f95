"""What services remember: per session, per task, never mixed; whole or not at all, whatever dies."""

from __future__ import annotations

import asyncio
import base64
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.services.process_services import notes
from tests.support.waiting import eventually
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import Deployment, NonRetryableError, ServiceContext, TaskFailed, service
from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import MemoryBusyError, OrchestratorError, SessionNotFoundError
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.services import Service, WorkflowService, result_from_value
from llama_deploy.services.base import Parked
from llama_deploy.testing import InMemorySystem
from llama_deploy.types import RetryPolicy, ServiceDefinition, TaskState

AT_ONCE = RetryPolicy(initial_s=0.0, jitter=0.0, max_retries=3)


@service(memory="session")
async def talk(text: str, context: ServiceContext) -> list[str]:
    """Says everything that it was told in this session."""
    said: list[str] = context.memory.setdefault("said", [])
    said.append(text)
    await asyncio.sleep(0)
    return list(said)


@service(memory="task")
async def count(context: ServiceContext, **_: Any) -> int:
    """How often this task has asked."""
    context.memory["count"] = context.memory.get("count", 0) + 1
    return int(context.memory["count"])


def system(*services: Any, **options: Any) -> InMemorySystem:
    return InMemorySystem([talk, count, *services], **options)


async def test_a_service_remembers_what_was_said_in_a_session_and_no_other_one() -> None:
    @service(name="other", memory="session")
    async def other(text: str, context: ServiceContext) -> Any:
        return [*context.memory, context.memory.setdefault(text, 1)]

    async with system(other) as made:
        client = made.client
        assert await client.run("talk", text="a", session_id="one") == ["a"]
        assert await client.run("talk", text="b", session_id="one") == ["a", "b"]
        assert await client.run("talk", text="c", session_id="two") == ["c"]
        assert await client.run("other", text="d", session_id="one") == [1]
        assert await client.run("other", text="e", session_id="one") == ["d", 1]
        assert await client.run("talk", text="f") == ["f"]  # a task in no session shares with nobody
        assert await client.run("talk", text="g") == ["g"]
        assert await client.get_session_memory("one") == {"talk": {"said": ["a", "b"]}, "other": {"d": 1, "e": 1}}
        assert await client.get_session_state("one") == {"retries": 3}


async def test_the_steps_of_a_session_run_one_after_the_other_and_lose_nothing() -> None:
    running: list[int] = []

    @service(memory="session", concurrency=8)
    async def slow(number: int, context: ServiceContext) -> int:
        running.append(number)
        assert len(running) == 1
        said = context.memory.setdefault("said", [])
        await asyncio.sleep(0.001)
        said.append(number)
        running.remove(number)
        return number

    async with system(slow) as made:
        tasks = [await made.client.submit("slow", number=number, session_id="one") for number in range(30)]
        for task in tasks:
            await made.client.result(task)
        memory = await made.client.get_session_memory("one")
        assert memory["slow"]["said"] == list(range(30))  # in the order in which they were sent


async def test_sessions_do_not_wait_for_each_other() -> None:
    both = asyncio.Barrier(2)

    @service(memory="session")
    async def meet(context: ServiceContext) -> str:
        await both.wait()
        return "met"

    async with system(meet) as made:
        tasks = [await made.client.submit("meet", session_id=name) for name in ("one", "two")]
        assert [await made.client.result(task) for task in tasks] == ["met", "met"]


class Thrice(BaseOrchestrator):
    """Sends three messages to `count`, at once."""

    async def get_next_messages(self, task_def: Any, state: dict[str, Any]) -> Any:
        from llama_deploy import QueueMessage

        if task_def.task_id not in state:
            state[task_def.task_id] = {}
            return [QueueMessage(type="count", data={"number": number}) for number in range(3)], state
        return [], state

    async def add_result_to_state(self, result: Any, state: dict[str, Any]) -> dict[str, Any]:
        mine = state[result.task_id]
        mine[result.step_id] = result.output
        if len(mine) == 3:
            state[get_result_key(result.task_id)] = {"result": json.dumps(sorted(mine.values()))}
        return state


@pytest.mark.parametrize("session_id", [None, "one"])
async def test_the_memory_of_a_task_is_its_own(session_id: str | None) -> None:
    async with system(orchestrator=Thrice()) as made:
        assert await made.client.run("count", session_id=session_id) == "[1, 2, 3]"
        task_id = await made.client.submit("count", session_id=session_id)
        assert await made.client.result(task_id) == "[1, 2, 3]"
        history = [entry async for entry in made.client.history(task_id)]
        changes = [entry.state_changes or {} for entry in history]
        kept = [change["memory"] for change in changes if "memory" in change]
        assert kept == [{"count": {"count": number}} for number in (1, 2, 3)]
        if session_id:
            assert await made.client.get_session_memory("one") == {}


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_a_failed_attempt_leaves_nothing_and_the_next_one_sees_what_it_saw() -> None:
    seen: list[Any] = []

    @service(memory="session", retry=AT_ONCE)
    async def flaky(context: ServiceContext, fail: int = 1) -> Any:
        seen.append(dict(context.memory))
        context.memory["attempts"] = context.memory.get("attempts", 0) + 1
        if context.attempt <= fail:
            raise ValueError("not yet")
        return context.memory["attempts"]

    @service(memory="session")
    async def never(context: ServiceContext) -> None:
        context.memory["touched"] = True
        raise NonRetryableError("no")

    async with system(flaky, never) as made:
        task = await made.client.submit("flaky", session_id="one", fail=2)
        await made.advance(5)
        assert await made.client.result(task) == 1
        assert seen == [{}, {}, {}]
        with pytest.raises(TaskFailed):
            await made.client.run("never", session_id="one")
        assert await made.client.get_session_memory("one") == {"flaky": {"attempts": 1}}


@pytest.mark.parametrize("what", ["too much", "no JSON"])
async def test_a_memory_that_cannot_be_kept_fails_the_step(what: str) -> None:
    @service(memory="session")
    async def greedy(context: ServiceContext) -> None:
        context.memory["x"] = "x" * 200 if what == "too much" else object()

    async with system(greedy, settings=EngineSettings(memory_bytes_max=100)) as made:
        with pytest.raises(TaskFailed) as failed:
            await made.client.run("greedy", session_id="one")
        error = failed.value.error
        assert error.retryable is False
        assert ("memory_bytes_max is 100" if what == "too much" else "context.memory") in error.message + error.fix
        assert await made.client.get_session_memory("one") == {}


async def test_a_service_without_memory_says_how_to_have_one() -> None:
    @service
    async def plain(context: ServiceContext) -> Any:
        return context.memory

    async with system(plain) as made:
        with pytest.raises(TaskFailed, match="plain keeps no memory") as failed:
            await made.client.run("plain")
        assert 'memory="session"' in failed.value.error.fix


async def test_a_policy_sees_nothing_of_it_and_cannot_write_it() -> None:
    seen: list[list[str]] = []

    class Nosy(Thrice):
        async def get_next_messages(self, task_def: Any, state: dict[str, Any]) -> Any:
            seen.append(list(state))
            if task_def.input == "write":
                state["__memory__:talk"] = {}
            return [], {**state, get_result_key(task_def.task_id): {"result": "done"}}

    async with system() as made:
        await made.client.run("talk", text="a", session_id="one")
    store = made.store
    async with system(orchestrator=Nosy(), store=store) as again:
        assert await again.client.run("talk", text="b", session_id="one") == "done"
        assert seen == [["retries"]]
        with pytest.raises(OrchestratorError, match="what services remember"):
            await again.client.run("talk", input="write", session_id="one")


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["engine.after_record", "gateway.before_answer", "gateway.before_ack"])
async def test_what_was_said_is_remembered_once_whatever_the_control_plane_dies_of(point: str) -> None:
    async with system() as made:
        assert await made.client.run("talk", text="a", session_id="one") == ["a"]
        made.crash_at(point)
        task = asyncio.create_task(made.client.run("talk", text="b", session_id="one"))
        await eventually(lambda: not made.running)
        await made.restart()
        await made.advance(5)
        assert await task == ["a", "b"]
        assert await made.client.run("talk", text="c", session_id="one") == ["a", "b", "c"]


async def test_an_instance_that_dies_leaves_nothing_in_the_memory() -> None:
    hang = asyncio.Event()
    attempts: list[int] = []

    @service(memory="session", name="hangs")
    async def hangs(context: ServiceContext) -> Any:
        attempts.append(context.attempt)
        context.memory["n"] = context.memory.get("n", 0) + 1
        if context.attempt == 1:
            await hang.wait()
        return context.memory["n"]

    async with InMemorySystem() as made:
        first = await made.start_instance([hangs], instance_id="a")
        task = await made.client.submit("hangs", session_id="one")
        later = await made.client.submit("hangs", session_id="one")
        await eventually(lambda: attempts == [1])
        assert "has it" in ((await made.client.get_task(later)).waiting_for or "")
        first.crash()
        hang.set()
        await made.start_instance([hangs], instance_id="b")
        await made.advance(5)
        assert [await made.client.result(task), await made.client.result(later)] == [1, 2]


def is_parked(made: InMemorySystem, task_id: str) -> bool:
    """Whether the first step of a task is parked."""
    return bool(made.plane.engine.cache.tasks[task_id].open[f"{task_id}:1"].parked)


class Waits(Service):
    """Notes something, is parked until a person has answered, and says what it had noted."""

    definition = ServiceDefinition(service_name="waits", description="", memory="session")

    async def run(self, context: ServiceContext) -> Any:
        context.memory["runs"] = context.memory.get("runs", 0) + 1
        if context.inputs.empty():
            return Parked(prompt={"prompt": "?"}, resume="redeliver", snapshot=b"1", consumed=0)
        return result_from_value([context.memory["runs"], await context.inputs.get()])


@pytest.mark.parametrize("restart", [False, True])
async def test_a_parked_step_keeps_its_turn_and_what_it_has_noted(restart: bool) -> None:
    async with system(Waits()) as made:
        client = made.client
        first = await client.submit("waits", session_id="one")
        await eventually(partial(is_parked, made, first))
        second = await client.submit("waits", session_id="one")
        elsewhere = await client.submit("waits", session_id="two")
        with pytest.raises(MemoryBusyError, match=first):
            await client.clear_session_memory("one")
        if restart:
            await made.crash()
            await made.restart()
            await made.advance(40)
        assert (await client.get_task(second)).state is TaskState.WORKING
        assert first in ((await client.get_task(second)).waiting_for or "")
        await eventually(partial(is_parked, made, elsewhere))
        await client.send_input(elsewhere, "e")
        assert await client.result(elsewhere) == [2, "e"]
        assert await client.get_session_memory("one") == {}
        await client.send_input(first, "x")
        assert await client.result(first) == [2, "x"]
        await made.settle()
        await eventually(partial(is_parked, made, second))
        await client.send_input(second, "y")
        assert await client.result(second) == [4, "y"]
        assert await client.get_session_memory("one") == {"waits": {"runs": 4}}


@pytest.mark.parametrize("restart", [False, True])
async def test_a_canceled_turn_goes_to_the_next(restart: bool) -> None:
    async with system(Waits()) as made:
        first = await made.client.submit("waits", session_id="one")
        await eventually(partial(is_parked, made, first))
        second = await made.client.submit("waits", session_id="one")
        if restart:
            await made.crash()
            await made.restart()
            await made.advance(40)
        await made.client.cancel(first)
        await eventually(partial(is_parked, made, second))
        await made.client.send_input(second, "y")
        assert await made.client.result(second) == [2, "y"]
        assert await made.client.clear_session_memory("one") == ["waits"]
        assert await made.client.clear_session_memory("one") == []


async def test_an_answer_made_from_an_earlier_memory_is_not_taken() -> None:
    go = asyncio.Event()
    given: list[dict[str, Any]] = []

    @service(memory="session", retry=AT_ONCE)
    async def late(context: ServiceContext) -> int:
        given.append(dict(context.memory))
        if context.attempt == 1:
            await go.wait()
        context.memory["n"] = context.memory.get("n", 0) + 1
        return int(context.memory["n"])

    async with system(late) as made:
        task = await made.client.submit("late", session_id="one")
        await eventually(lambda: given)
        session = made.plane.engine.cache.sessions["one"]
        session.put("__memory__:late", b'{"memory":{"n":5}}', 1, committed=True)  # as another control plane would
        go.set()
        await made.advance(5)
        kinds = [(entry.kind, entry.error.code) async for entry in made.client.history(task) if entry.error]
        assert kinds[0] == ("retrying", "LD544")
        assert given[1] == {"n": 5}


# --- looking and clearing ---------------------------------------------------------------------------------------------


async def test_clearing_one_service_leaves_the_others() -> None:
    @service(name="other", memory="session")
    async def other(context: ServiceContext) -> None:
        context.memory["x"] = 1

    async with system(other) as made:
        client = made.client
        await client.run("talk", text="a", session_id="one")
        await client.run("other", session_id="one")
        assert await client.clear_session_memory("one", "talk") == ["talk"]
        assert await client.get_session_memory("one") == {"other": {"x": 1}}
        await made.crash()
        await made.restart()
        assert await client.run("talk", text="b", session_id="one") == ["b"]
        assert sorted(await client.clear_session_memory("one")) == ["other", "talk"]
        for call in (client.get_session_memory, client.clear_session_memory):
            with pytest.raises(SessionNotFoundError):
                await call("nowhere")


def files_with(folder: Path, text: bytes) -> list[Path]:
    return [file for file in folder.iterdir() if text in file.read_bytes()]


async def test_erasing_a_session_erases_what_was_remembered_of_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with Deployment(services=[talk], store=path, quiet=True) as deployment:
        await deployment.run("talk", text="a-secret-word", session_id="one")
        await deployment.client.erase_session("one")
        with pytest.raises(SessionNotFoundError):
            await deployment.client.get_session_memory("one")
        assert await deployment.run("talk", text="new", session_id="one") == ["new"]
    assert [file.name for file in files_with(tmp_path, b"a-secret-word")] == []


async def test_a_fork_has_the_memory_of_its_task_then_and_of_its_session_now() -> None:
    async with system(orchestrator=Thrice()) as made:
        task_id = await made.client.submit("count")
        await made.client.result(task_id)
        fork = await made.client.fork(task_id, 2)
        assert await made.client.result(fork.task_id) == "[1, 2, 3]"


# --- workflows --------------------------------------------------------------------------------------------------------


class Counting(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        number = await ctx.store.get("number", default=0) + 1
        await ctx.store.set("number", number)
        return StopEvent(result=number)


class Asking(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        await ctx.store.set("asked", await ctx.store.get("asked", default=0) + 1)
        return InputRequiredEvent(prefix="?")  # type: ignore[call-arg]  # a field of the reader's own

    @step
    async def answer(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=f"{await ctx.store.get('asked')} {ev.response}")


class Locking(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("lock", asyncio.Lock())
        return StopEvent(result=1)


async def test_the_context_of_a_workflow_carries_over() -> None:
    flows = [WorkflowService(Counting(), memory="session"), WorkflowService(Asking(), memory="session")]
    async with system(*flows, WorkflowService(Counting(), name="alone")) as made:
        client = made.client
        for number in (1, 2, 3):
            assert await client.run("Counting", session_id="one") == number
            assert await client.run("alone", session_id="one") == 1
        assert await client.run("Counting", session_id="two") == 1
        await made.crash()
        await made.restart()
        assert await client.run("Counting", session_id="one") == 4
        for number in (1, 2):
            task = await client.submit("Asking", session_id="one")
            await eventually(partial(is_parked, made, task))
            await client.send_input(task, "x")
            assert await client.result(task) == f"{number} x"


async def test_a_context_that_cannot_be_kept_fails_the_step() -> None:
    async with system(WorkflowService(Locking(), memory="session")) as made:
        with pytest.raises(TaskFailed, match="cannot be kept as its memory"):
            await made.client.run("Locking", session_id="one")


# --- where else it is -------------------------------------------------------------------------------------------------


async def test_code_in_a_process_of_its_own_remembers_as_well() -> None:
    async with InMemorySystem([notes]) as made:
        assert await made.client.run("notes", text="a", session_id="one") == ["a"]
        with pytest.raises(TaskFailed):
            await made.client.run("notes", text="fail", session_id="one")
        assert await made.client.run("notes", text="b", session_id="one") == ["a", "b"]


@service(memory="session")
def in_thread(text: str, context: ServiceContext) -> int:
    """Keeps what is to be left out, and what is not."""
    context.memory["password"] = text
    context.memory["turns"] = context.memory.get("turns", 0) + 1
    return int(context.memory["turns"])


async def test_it_is_redacted_and_encrypted_as_all_else_is(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(base64.b64encode(bytes(range(32))).decode() + "\n")
    key.chmod(0o600)
    store = tmp_path / "store"
    store.mkdir()
    for turn in (1, 2):
        async with Deployment(
            services=[in_thread], store=store / "s.db", quiet=True, redact=["password"], encryption_key_file=key
        ) as deployment:
            assert await deployment.run("in_thread", text="a-secret-word", session_id="one") == turn
            memory = await deployment.client.get_session_memory("one")
            assert memory["in_thread"]["turns"] == turn
            assert "a-secret-word" not in json.dumps(memory)
    assert files_with(store, b"turns") == []


@pytest.mark.parametrize("fails_with", ["an answer", "a question"])
async def test_a_memory_is_handed_to_the_attempt_after_a_lost_one(fails_with: str) -> None:
    """The control plane dies while a person is asked in a running attempt: the turn and the memory are the same."""

    @service(memory="session")
    async def asks(context: ServiceContext) -> Any:
        context.memory["asked"] = context.memory.get("asked", 0) + 1
        return [await context.ask("?"), context.memory["asked"]]

    async with InMemorySystem([asks]) as made:
        first = await made.client.submit("asks", session_id="one")
        second = await made.client.submit("asks", session_id="one")
        await made.advance(1)
        if fails_with == "a question":
            await made.crash()
            await made.restart()
            await made.advance(5)
        assert (await made.client.get_task(first)).state is TaskState.INPUT_REQUIRED
        assert (await made.client.get_task(second)).state is not TaskState.INPUT_REQUIRED
        await made.client.send_input(first, "x")
        assert await made.client.result(first) == ["x", 1]
        await made.advance(1)
        await made.client.send_input(second, "y")
        assert await made.client.result(second) == ["y", 2]
