"""Run, submit, wait and result: what is sent, what comes back, what is raised."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import date
from typing import Any

import pytest
from pydantic import BaseModel
from tests.client.fake_control_plane import FakeControlPlane, FakeTask, Peer, accept, answer, send_outcome, silent
from tests.support import eventually

from llama_deploy.client import Client
from llama_deploy.errors import (
    InvalidRequestError,
    LimitExceededError,
    OutputTypeError,
    ServiceUnknownError,
    TaskFailed,
    TaskNotFoundError,
    WaitTimeoutError,
)
from llama_deploy.messages import submissions
from llama_deploy.messages.frames import ClientOp, Ended, Forget, Submit, Wait
from llama_deploy.types import TaskDefinition, TaskError


class Answer(BaseModel):
    pages: int
    due: date


async def test_run_sends_arguments_as_json_and_returns_the_output(plane: FakeControlPlane, client: Client) -> None:
    assert await client.run("shout", text="hello", times=2) == '{"TEXT":"HELLO","TIMES":2}'
    (op,) = plane.ops
    assert isinstance(op, Submit)
    assert op.wait
    definition = TaskDefinition.model_validate_json(op.definition)
    assert definition.agent_id == "shout"
    assert json.loads(definition.input) == {"text": "hello", "times": 2}
    assert (definition.session_id, definition.idempotency_key, definition.metadata) == (None, None, {})


async def test_run_sends_everything_that_a_definition_holds(plane: FakeControlPlane, client: Client) -> None:
    await client.run(
        None, input="x", session_id="s", task_id="t", wait_for_service=True, idempotency_key="k", metadata={"a": "b"}
    )
    assert plane.tasks["t"].definition == {
        "input": "x",
        "task_id": "t",
        "session_id": "s",
        "wait_for_service": True,
        "idempotency_key": "k",
        "metadata": {"a": "b"},
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("text as it is", "text as it is"),
        ({"a": 1}, '{"a":1}'),
        ([1, None], "[1,null]"),
        (None, "null"),
        (Answer(pages=1, due=date(2024, 2, 3)), '{"pages":1,"due":"2024-02-03"}'),
    ],
)
async def test_input_is_text_or_the_json_of_a_value(
    plane: FakeControlPlane, client: Client, given: Any, sent: str
) -> None:
    task_id = await client.submit("s", input=given)
    assert plane.tasks[task_id].definition["input"] == sent


async def test_a_service_without_arguments_gets_an_empty_object(plane: FakeControlPlane, client: Client) -> None:
    task_id = await client.submit("s")
    assert plane.tasks[task_id].definition["input"] == "{}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"input": 1, "text": "x"}, "both `input` and keyword arguments"),
        ({"input": b"x"}, "bytes is not JSON serializable"),
        ({"input": math.nan}, "not JSON compliant"),
        ({"thing": object()}, "type builtins.object has no JSON form"),
        ({"metadata": {"n": 1}}, "maps text to text"),
        ({"timeout_s": -1}, "timeout_s is -1"),
    ],
)
async def test_what_cannot_be_sent_is_refused_before_anything_is(
    plane: FakeControlPlane, client: Client, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        await client.run("s", **arguments)
    assert plane.ops == []


async def test_a_definition_above_the_limit_is_refused_here(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "OPERATION_BYTES_MAX", 1000)
    with pytest.raises(LimitExceededError) as caught:
        await client.run("s", input="x" * 1000)
    assert caught.value.details == {"setting": "OPERATION_BYTES_MAX", "limit": 1000}


async def test_calls_of_one_moment_leave_as_one_frame(plane: FakeControlPlane, client: Client) -> None:
    await client.run("s", input="connects")
    outputs = await asyncio.gather(*(client.run("s", input=f"n{number}") for number in range(64)))
    assert outputs == [f"N{number}" for number in range(64)]
    assert [len(frame) for frame in plane.frames] == [1, 64]


async def test_large_frames_are_split(plane: FakeControlPlane, client: Client) -> None:
    text = "x" * 400_000
    await asyncio.gather(*(client.submit("s", input=text) for _ in range(6)))
    assert [len(frame) for frame in plane.frames] == [2, 2, 2]


async def test_text_of_an_older_service_is_the_output(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    task.end("completed", result="plain")
    assert await client.result("t") == "plain"
    assert await client.result("t", output_type=str) == "plain"
    task.end("completed", result='{"pages": 2, "due": "2024-01-01"}')
    assert (await client.result("t", output_type=Answer)).pages == 2


async def test_output_type_validates(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    task.end("completed", kind="json", value={"pages": 3, "due": "2024-02-03"})
    assert await client.result("t", output_type=Answer) == Answer(pages=3, due=date(2024, 2, 3))
    assert await client.result("t") == {"pages": 3, "due": "2024-02-03"}
    task.end("completed", kind="json", value=[1, 2])
    assert await client.result("t", output_type=tuple[int, int]) == (1, 2)


async def test_another_type_is_a_clear_error(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    task.end("completed", kind="json", value={"pages": "many"})
    with pytest.raises(OutputTypeError) as caught:
        await client.result("t", output_type=Answer)
    assert caught.value.what == 'the output of task t is not a Answer: {"pages":"many"}'
    assert [problem.split(":")[0] for problem in caught.value.details["problems"]] == ["pages", "due"]


async def test_a_failed_task_raises_the_remote_error(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    error = TaskError(type="ValueError", message="no such page", retryable=False)
    task.end("failed", service="reader", error=error.model_dump())
    with pytest.raises(TaskFailed) as caught:
        await client.result("t", output_type=Answer)
    assert caught.value.task_id == "t"
    assert caught.value.error == error
    assert str(caught.value) == "task t of service 'reader' failed (ValueError: no such page)"
    assert caught.value.fix == "llamactl tasks get t     see each step and attempt"


async def test_what_to_do_about_a_remote_error_comes_first(
    plane: FakeControlPlane, client: Client, task: FakeTask
) -> None:
    error = TaskError(type="ArgumentsError", message="`text` is missing", fix="give text")
    task.end("failed", service="shout", error=error.model_dump())
    with pytest.raises(TaskFailed) as caught:
        await client.result("t")
    assert caught.value.fix.splitlines() == ["give text", "llamactl tasks get t     see each step and attempt"]


@pytest.mark.parametrize(("state", "told"), [("canceled", "was canceled"), ("rejected", "was rejected")])
async def test_canceled_and_rejected_raise_too(
    plane: FakeControlPlane, client: Client, task: FakeTask, state: str, told: str
) -> None:
    task.end(state, error=None)
    with pytest.raises(TaskFailed, match=told) as caught:
        await client.result("t")
    assert caught.value.details["state"] == state
    assert caught.value.error is None


async def test_wait_returns_the_outcome_whatever_it_is(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    task.end("failed", error={"message": "broken"})
    result = await client.wait("t")
    assert (result.status, result.error and result.error.message) == ("failed", "broken")


async def test_refusals_are_the_errors_that_they_were(plane: FakeControlPlane, client: Client) -> None:
    def refuse(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        peer.refuse(op.request, ServiceUnknownError("nobody serves 'x'", fix="serve it", known=["a", "b"]))

    plane.handle = refuse
    with pytest.raises(ServiceUnknownError) as caught:
        await client.run("x", input="")
    assert caught.value.details["known"] == ["a", "b"]
    assert caught.value.fix == "serve it"


async def test_an_unknown_task_is_not_found(client: Client) -> None:
    with pytest.raises(TaskNotFoundError):
        await client.result("nobody")


async def test_submit_many_keeps_the_order_and_travels_at_once(plane: FakeControlPlane, client: Client) -> None:
    ids = await client.submit_many("s", [{"n": 1}, "two", 3], session_id="all")
    assert [plane.tasks[task_id].definition["input"] for task_id in ids] == ['{"n":1}', "two", "3"]
    assert {task.definition["session_id"] for task in plane.tasks.values()} == {"all"}
    assert len(plane.frames) == 1


async def test_submit_many_tells_which_were_accepted(plane: FakeControlPlane, client: Client) -> None:
    def refuse_one(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        assert isinstance(op, Submit)
        if b'"b"' in op.definition:
            peer.refuse(op.request, InvalidRequestError("not b"))
        else:
            accept(plane, peer, op)

    plane.handle = refuse_one
    with pytest.raises(InvalidRequestError, match="not b") as caught:
        await client.submit_many("s", ["a", "b", "c"], task_ids=["1", "2", "3"])
    assert caught.value.details["accepted"] == ["1", "3"]


async def test_submit_many_checks_all_before_it_sends_any(plane: FakeControlPlane, client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be sent"):
        await client.submit_many("s", ["a", object()])
    with pytest.raises(InvalidRequestError, match="1 inputs and 2 task ids"):
        await client.submit_many("s", ["a"], task_ids=["1", "2"])
    assert await client.submit_many("s", []) == []
    assert plane.ops == []


async def test_a_timeout_names_the_task_and_leaves_it_alone(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = silent
    with pytest.raises(WaitTimeoutError) as caught:
        await client.run("s", input="x", task_id="slow", timeout_s=0.05)
    assert caught.value.details["task_id"] == "slow"
    assert "recorded and goes on" in caught.value.why
    await eventually(lambda: any(isinstance(op, Forget) for op in plane.ops))
    plane.tasks["slow"].end("completed", result="done")
    plane.handle = answer
    assert await client.result("slow") == "done"


async def test_a_timeout_before_acceptance_says_so(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = lambda *_: None
    with pytest.raises(WaitTimeoutError, match="has not accepted task slow") as caught:
        await client.submit("s", input="x", task_id="slow", timeout_s=0.05)
    assert "not known" in caught.value.why


async def test_a_wait_without_end_has_no_timer(plane: FakeControlPlane, client: Client) -> None:
    assert await client.run("s", input="x", timeout_s=math.inf) == "X"


async def test_a_canceled_caller_is_forgotten(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = silent
    calling = asyncio.ensure_future(client.run("s", input="x", task_id="t"))
    await eventually(lambda: plane.tasks)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await eventually(lambda: isinstance(plane.ops[-1], Forget))


async def test_an_idempotency_key_may_lead_to_an_earlier_task(plane: FakeControlPlane, client: Client) -> None:
    first = plane.tasks["first"] = FakeTask({"task_id": "first"})
    first.end("completed", result="of the first")

    def find_first(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        assert isinstance(op, Submit)
        plane.tasks["again"] = first
        accept(plane, peer, Submit(op.request, b'{"task_id": "again"}', op.wait))
        if op.wait:
            send_outcome(peer, op.request, first)

    plane.handle = find_first
    assert await client.submit("s", input="x", idempotency_key="k") == "first"
    assert await client.run("s", input="x", idempotency_key="k") == "of the first"


async def test_waiting_asks_once(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = silent
    waiting = [asyncio.ensure_future(client.run("s", input="x", task_id="t")) for _ in range(1)]
    await eventually(lambda: plane.tasks)
    waiting.append(asyncio.ensure_future(client.result("t")))
    await eventually(lambda: any(isinstance(op, Wait) for op in plane.ops))
    sent = len(plane.frames)
    plane.tasks["t"].end("completed", result="late")
    for op in plane.ops:
        send_outcome(plane.peers[0], op.request, plane.tasks["t"])
    assert await asyncio.gather(*waiting) == ["late", "late"]
    assert len(plane.frames) == sent


async def test_an_outcome_that_comes_twice_counts_once(plane: FakeControlPlane, client: Client) -> None:
    def twice(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        answer(plane, peer, op)
        peer.reply(Ended(op.request, "other", "completed", b"{}"))

    plane.handle = twice
    assert await client.run("s", input="a") == "A"
    assert await client.run("s", input="b") == "B"
