"""Workflows that wait for people: asking, parking, going on elsewhere, and inputs that do not fit."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.services.attempts import Attempt
from tests.services.flows import Again, Agent, Approve, Between, Early, Name, Quiet, Survey, Typed, Unsaved, question
from tests.support import PROCESS_S, eventually
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.errors import ServiceRaisedError
from llama_deploy.services import Parked, WorkflowService
from llama_deploy.types import TaskResult

ROOT = Path(__file__).parents[2]


async def park(workflow: type[Workflow], **attempt: Any) -> tuple[Parked, Attempt]:
    made = Attempt(**attempt)
    parked = await WorkflowService(workflow()).run(made)
    assert isinstance(parked, Parked)
    return parked, made


async def finish(workflow: type[Workflow], **attempt: Any) -> tuple[TaskResult, Attempt]:
    made = Attempt(**attempt)
    result = await WorkflowService(workflow()).run(made)
    assert isinstance(result, TaskResult)
    return result, made


def event(name: str, **fields: Any) -> dict[str, Any]:
    return {"event": {"type": name, **fields}}


async def test_a_run_that_waits_is_asked_for_and_parked() -> None:
    before = asyncio.all_tasks()
    parked, attempt = await park(Name)
    assert attempt.asked == [parked.prompt]
    assert parked.prompt["prompt"] == "your name?"
    assert parked.prompt["event"] == {"prefix": "your name?", "$type": "workflows.events.InputRequiredEvent"}
    assert attempt.events == [parked.prompt["event"]]
    assert (parked.resume, parked.consumed) == ("redeliver", 0)
    assert asyncio.all_tasks() == before


async def test_it_goes_on_from_the_snapshot_with_the_answer() -> None:
    parked, _ = await park(Name)
    result, attempt = await finish(Name, inputs=["Ann"], snapshot=parked.snapshot)
    assert result.result == "hello Ann"
    assert attempt.asked == []
    assert [one["$type"] for one in attempt.events] == ["workflows.events.StopEvent"]


async def test_it_goes_on_in_another_process(tmp_path: Path) -> None:
    parked, _ = await park(Name)
    assert parked.snapshot is not None
    saved = tmp_path / "parked.json"
    saved.write_text(json.dumps({"snapshot": parked.snapshot.decode(), "inputs": ["Bob"]}))
    command = [sys.executable, "-m", "tests.services.flows", str(saved)]
    ended = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=PROCESS_S
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["result"] == "hello Bob"


async def test_questions_one_after_the_other() -> None:
    first, _ = await park(Survey)
    assert first.prompt["prompt"] == "one?"
    inputs = [event("FirstAnswer", response="1")]
    second, attempt = await park(Survey, inputs=inputs, snapshot=first.snapshot)
    assert (second.prompt["prompt"], second.consumed) == ("two?", 1)
    assert [one["prefix"] for one in attempt.events] == ["two?"]
    inputs.append(event("tests.services.flows.SecondAnswer", response="2"))
    result, _ = await finish(Survey, inputs=inputs, snapshot=second.snapshot)
    assert result.value == ["1", "2"]


@pytest.mark.parametrize(
    ("workflow", "inputs", "expected"),
    [
        (Name, ["Ann"], "hello Ann"),
        (Early, ["now"], "now"),
        (Survey, [event("FirstAnswer", response="1"), event("SecondAnswer", response="2")], "['1', '2']"),
        (Quiet, [event("FirstAnswer", response="1")], "1"),
        (Unsaved, ["x"], "Lock x"),
    ],
)
async def test_recorded_answers_are_given_again_to_a_run_from_the_start(
    workflow: type[Workflow], inputs: list[Any], expected: str
) -> None:
    result, attempt = await finish(workflow, inputs=inputs)
    assert result.result == expected
    assert attempt.asked == []


async def test_a_quick_answer_finds_the_run_still_there() -> None:
    attempt = Attempt()
    running = asyncio.create_task(WorkflowService(Name()).run(attempt))
    await eventually(lambda: attempt.asked)
    attempt.inputs.put_nowait("Ann")
    result = await running
    assert isinstance(result, TaskResult)
    assert result.result == "hello Ann"


async def test_an_answer_that_comes_before_the_step_waits_is_not_lost() -> None:
    attempt = Attempt()
    running = asyncio.create_task(WorkflowService(Early()).run(attempt))
    await eventually(lambda: attempt.asked)
    attempt.inputs.put_nowait("quick")
    result = await running
    assert isinstance(result, TaskResult)
    assert result.result == "quick"
    assert len(attempt.asked) == 1


async def test_a_run_that_waits_without_having_said_so() -> None:
    parked, attempt = await park(Quiet)
    assert parked.prompt["events"] == ["tests.services.flows.FirstAnswer"]
    assert attempt.asked == [parked.prompt]
    result, _ = await finish(Quiet, inputs=[event("FirstAnswer", response="r")], snapshot=parked.snapshot)
    assert result.result == "r"


@pytest.mark.parametrize(
    "answer",
    [
        {"approved": True, "by": "Ann"},
        event("Approval", approved=True, by="Ann"),
        {"event": {"__is_pydantic": True, "value": {"approved": True, "by": "Ann"}, "qualified_name": "Approval"}},
        {"event": '{"$type": "tests.services.flows.Approval", "approved": true, "by": "Ann"}'},
    ],
)
async def test_the_forms_of_an_answer(answer: Any) -> None:
    parked, _ = await park(Approve)
    result, _ = await finish(Approve, inputs=[answer], snapshot=parked.snapshot)
    assert result.result == "True by Ann"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (event("Approvl", approved=True), "no event 'Approvl'"),
        (event("subprocess.Popen", args="true"), "no event 'subprocess.Popen'"),
        (event("Approval", approved="perhaps"), "do not fit the event Approval"),
        ("yes", "does not fit Approval"),
        (event("FirstAnswer", response="x"), "waits for FirstAnswer"),
    ],
)
async def test_an_input_of_no_use_is_seen_and_asked_for_again(answer: Any, problem: str) -> None:
    parked, _ = await park(Approve)
    again, attempt = await park(Approve, inputs=[answer], snapshot=parked.snapshot)
    assert problem in again.prompt["problem"]
    assert problem in attempt.events[0]["error"]["message"]
    assert (again.prompt["prompt"], again.consumed) == ("approve?", 1)
    result, _ = await finish(Approve, inputs=[answer, {"approved": False}], snapshot=again.snapshot)
    assert result.result == "False by ?"


async def test_a_state_of_a_type_is_kept() -> None:
    parked, _ = await park(Typed)
    result, _ = await finish(Typed, inputs=["answer"], snapshot=parked.snapshot)
    assert result.value == ["asked", "answer"]


@pytest.mark.parametrize(("workflow", "expected"), [(Unsaved, "Lock later"), (Agent, "Memory later")])
async def test_a_context_that_cannot_be_saved_waits_in_memory(workflow: type[Workflow], expected: str) -> None:
    attempt = Attempt()
    running = asyncio.create_task(WorkflowService(workflow()).run(attempt))
    await eventually(lambda: attempt.asked)
    done, _ = await asyncio.wait([running], timeout=0.2)
    assert not done
    attempt.inputs.put_nowait("later")
    result = await running
    assert isinstance(result, TaskResult)
    assert result.result == expected


async def test_a_run_is_not_parked_while_another_step_works() -> None:
    go = asyncio.Event()

    class Both(Workflow):
        @step
        async def start(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent | Between:
            ctx.send_event(Between(text="work"))
            return question(prompt="?")

        @step
        async def work(self, ctx: Context, ev: Between) -> None:
            await go.wait()
            ctx.write_event_to_stream(Event(worked=True))

        @step
        async def answer(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=ev.response)

    attempt = Attempt()
    running = asyncio.create_task(WorkflowService(Both()).run(attempt))
    await eventually(lambda: attempt.asked)
    done, _ = await asyncio.wait([running], timeout=0.2)
    assert not done
    go.set()
    parked = await running
    assert isinstance(parked, Parked)
    assert attempt.events[-1]["worked"]


async def test_a_step_that_will_try_again_is_not_lost_by_parking() -> None:
    tries = []

    class Flaky(Workflow):
        @step
        async def start(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent | Between:
            ctx.send_event(Between(text="work"))
            return question(prompt="?")

        @step(retry_policy=Again(delay_s=0.3))
        async def work(self, ctx: Context, ev: Between) -> None:
            tries.append(1)
            if len(tries) < 2:
                raise OSError("not yet")
            ctx.write_event_to_stream(Event(worked=True))

        @step
        async def answer(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=ev.response)

    attempt = Attempt()
    running = asyncio.create_task(WorkflowService(Flaky()).run(attempt))
    await eventually(lambda: any("worked" in one for one in attempt.events))
    running.cancel()
    await asyncio.wait([running])


async def test_cancelling_a_run_that_waits_in_memory() -> None:
    before = asyncio.all_tasks()
    attempt = Attempt()
    running = asyncio.create_task(WorkflowService(Unsaved()).run(attempt))
    await eventually(lambda: attempt.asked)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "tests.services.flows.json", "nowhere.Thing"])
async def test_a_snapshot_never_makes_anything_be_imported(name: str) -> None:
    parked, _ = await park(Quiet)
    assert parked.snapshot is not None
    changed = parked.snapshot.replace(b"tests.services.flows.FirstAnswer", name.encode())
    with pytest.raises(ServiceRaisedError, match="cannot be resumed") as caught:
        await WorkflowService(Quiet()).run(Attempt(snapshot=changed))
    assert "nowhere" not in sys.modules
    assert caught.value.fix


async def test_a_snapshot_that_is_none() -> None:
    for snapshot in (b"", b"{}", b"[]", b'{"version": 99}', b'{"version": 1, "context": {}}'):
        with pytest.raises(ServiceRaisedError, match="cannot be resumed"):
            await WorkflowService(Name()).run(Attempt(snapshot=snapshot))
