"""Workflows as services: input, stream, result, failure, cancellation; waiting is in `test_workflow_people`."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import Field
from tests.services.attempts import Attempt
from tests.services.flows import Again, Between, Echo, Hello, Writer
from tests.support import PROCESS_S
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.errors import ArgumentsError, RunTimeoutError, SettingError
from llama_deploy.messages.stream_events import published_event
from llama_deploy.services import WorkflowService, as_service, error_from_exception
from llama_deploy.services.workflow import PlainWorkflowService
from llama_deploy.types import TaskResult


async def run(workflow: Any, input: Any = "{}", **settings: Any) -> tuple[TaskResult, Attempt]:
    attempt = Attempt(input)
    result = await WorkflowService(workflow, **settings).run(attempt)
    assert isinstance(result, TaskResult)
    return result, attempt


async def test_the_input_is_the_keyword_arguments_and_the_result_is_text() -> None:
    result, _ = await run(Hello(), {"name": "Ann"})
    assert (result.kind, result.result) == ("text", "hello Ann")


async def test_every_event_is_streamed_in_order_and_the_last_is_the_final_one() -> None:
    _, attempt = await run(Hello(), {"name": "Ann"})
    assert [published_event(event) for event in attempt.events] == [
        {"percent": 0},
        {"percent": 50},
        {"percent": 100},
        {"note": "dynamic", "n": 1},
        {"result": "hello Ann"},
    ]
    assert attempt.events[0]["$type"] == "tests.services.flows.Progress"
    assert attempt.events[-1]["$type"] == "workflows.events.StopEvent"


@pytest.mark.parametrize(
    ("value", "text"),
    [({"a": [1]}, "{'a': [1]}"), (3, "3"), (None, "None"), ([True], "[True]")],
)
async def test_a_result_with_a_json_form_is_a_value_beside_its_text(value: Any, text: str) -> None:
    result, _ = await run(Echo(), {"value": value})
    assert (result.kind, result.value, result.result) == ("json", value, text)


async def test_a_result_without_a_json_form_is_text() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd thing"

    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=Odd())

    result, attempt = await run(Flow())
    assert (result.kind, result.result) == ("text", "odd thing")
    assert attempt.events[-1]["$omitted"] == ["result"]


async def test_a_final_event_of_a_class_of_its_own() -> None:
    result, attempt = await run(Writer(), {"topic": "tides"})
    assert result.value == {"title": "tides", "pages": [1, 2]}
    assert json.loads(result.result) == result.value
    assert published_event(attempt.events[-1]) == result.value


async def test_a_field_without_a_json_form_is_named_and_left_out() -> None:
    class Raw(Event):
        text: str
        raw: Any = None

    class Flow(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Raw(text="a", raw=object()))
            return StopEvent(result="done")

    _, attempt = await run(Flow())
    assert attempt.events[0]["text"] == "a"
    assert attempt.events[0]["$omitted"] == ["raw"]


async def test_a_start_event_of_a_class_of_its_own() -> None:
    service = WorkflowService(Writer())
    assert service.definition.input_schema is not None
    assert service.definition.input_schema["required"] == ["topic"]
    assert service.definition.output_schema is not None
    assert service.definition.output_schema["title"] == "Report"
    assert (await run(Writer(), "just text"))[0].value["title"] == "just text"
    with pytest.raises(ArgumentsError, match="`topic` field required") as caught:
        await service.run(Attempt({"topc": "x"}))
    assert not error_from_exception(caught.value).retryable


async def test_input_that_is_not_an_object() -> None:
    with pytest.raises(ArgumentsError, match="JSON object"):
        await WorkflowService(Hello()).run(Attempt("text"))
    with pytest.raises(ArgumentsError, match="JSON object"):
        await WorkflowService(Hello()).run(Attempt("[1]"))


async def test_names_that_the_engine_uses_itself_are_ordinary_arguments() -> None:
    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=[ev.run_id, ev.ctx, ev.start_event])

    assert (await run(Flow(), {"run_id": 1, "ctx": 2, "start_event": 3}))[0].value == [1, 2, 3]


async def test_what_a_step_raises_is_raised_with_the_users_frames() -> None:
    class Flow(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Event(before=True))
            raise KeyError("missing")

    attempt = Attempt()
    with pytest.raises(KeyError) as caught:
        await WorkflowService(Flow()).run(attempt)
    assert [published_event(event) for event in attempt.events] == [{"before": True}]
    error = error_from_exception(caught.value)
    assert error.traceback is not None
    assert "in only" in error.traceback
    assert "control_loop" not in error.traceback


async def test_steps_that_retry_themselves() -> None:
    attempts = []

    class Flow(Workflow):
        @step(retry_policy=Again(delay_s=0.1))
        async def only(self, ev: StartEvent) -> StopEvent:
            attempts.append(1)
            if len(attempts) < 3:
                raise OSError("not yet")
            return StopEvent(result="done")

    assert (await run(Flow()))[0].result == "done"


async def test_the_workflows_own_timeout() -> None:
    class Flow(Workflow):
        @step
        async def forever(self, ev: StartEvent) -> StopEvent:
            await asyncio.Event().wait()
            return StopEvent()

    service = WorkflowService(Flow(timeout=0.05))
    assert service.definition.run_timeout_s == 0.05
    with pytest.raises(RunTimeoutError, match="forever"):
        await service.run(Attempt())


async def test_the_engines_default_timeout_gives_way_to_the_deadline() -> None:
    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=self._timeout)

    assert (await run(Flow()))[0].value == 600.0
    assert (await run(Flow(), run_timeout_s=1000))[0].value == 1000
    assert (await run(Flow(timeout=30), run_timeout_s=1000))[0].value == 30
    assert (await run(Flow(timeout=None)))[0].value == 600.0


async def test_cancelling_leaves_nothing_behind() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return StopEvent()

    before = asyncio.all_tasks()
    running = asyncio.create_task(WorkflowService(Flow()).run(Attempt()))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()
    assert asyncio.all_tasks() == before


async def test_a_run_that_nobody_refers_to_is_not_collected() -> None:
    go, begun = asyncio.Event(), asyncio.Event()

    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            begun.set()
            await go.wait()
            return StopEvent(result="alive")

    running = [asyncio.create_task(run(Flow(timeout=None))) for _ in range(5)]
    await begun.wait()
    gc.collect()
    go.set()
    assert [result.result for result, _ in await asyncio.gather(*running)] == ["alive"] * 5


class Keeper(Workflow):
    """Keeps its argument on `self` while others run."""

    limit = 1

    def __init__(self, *, prefix: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        self.prefix = prefix

    @step
    async def first(self, ev: StartEvent) -> Between:
        self.mine = ev.n
        for _ in range(20):
            await asyncio.sleep(0)
        return Between(text="")

    @step
    async def second(self, ev: Between) -> StopEvent:
        return StopEvent(result=f"{self.prefix}{self.mine}")


@pytest.mark.parametrize("workflow", [Keeper(prefix="x"), Keeper, lambda: Keeper(prefix="y")])
async def test_concurrent_runs_do_not_share_what_steps_put_on_self(workflow: Any) -> None:
    service = WorkflowService(workflow, name="keeper")
    results = await asyncio.gather(*(service.run(Attempt({"n": n})) for n in range(10)))
    texts = [result.result for result in results if isinstance(result, TaskResult)]
    assert [text.lstrip("xy") for text in texts] == [str(n) for n in range(10)]


async def test_an_instance_that_refers_to_itself_is_not_copied() -> None:
    class Flow(Workflow):
        def __init__(self) -> None:
            super().__init__()
            self.callback = self.heard
            self.count = 0

        def heard(self) -> None:
            self.count += 1

        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            self.callback()
            return StopEvent(result=self.count)

    service = WorkflowService(Flow())
    for n in (1, 2):
        result = await service.run(Attempt())
        assert isinstance(result, TaskResult)
        assert result.value == n


def test_the_definition() -> None:
    definition = WorkflowService(Hello()).definition
    assert (definition.service_name, definition.kind, definition.description) == ("Hello", "workflow", "Greets.")
    assert (definition.concurrency, definition.input_schema) == (8, {})
    assert WorkflowService(Hello(workflow_name="greeter")).definition.service_name == "greeter"
    assert WorkflowService(Hello(num_concurrent_runs=2)).definition.concurrency == 2
    assert WorkflowService(Hello, name="n", description="d", concurrency=3).definition.description == "d"


def test_as_service_recognises_workflows() -> None:
    assert isinstance(as_service(Hello()), PlainWorkflowService)
    assert isinstance(as_service(Hello), PlainWorkflowService)
    assert as_service(Hello(), name="other", run_timeout_s=5).definition.run_timeout_s == 5


def test_a_workflow_that_cannot_run_is_refused_at_once() -> None:
    class Nowhere(Event):
        x: int = Field(default=1)

    class Broken(Workflow):
        @step
        async def only(self, ev: StartEvent) -> Nowhere | StopEvent:
            return Nowhere()

    class NeedsArguments(Workflow):
        def __init__(self, llm: object) -> None:
            super().__init__()

        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(SettingError, match="not a valid workflow"):
        WorkflowService(Broken())
    with pytest.raises(SettingError, match="without arguments"):
        WorkflowService(NeedsArguments)
    with pytest.raises(SettingError, match="does not make a workflow"):
        WorkflowService(lambda: 3)  # type: ignore[arg-type,return-value]


def test_the_engine_is_imported_only_when_it_is_used() -> None:
    program = """
import sys
import llama_deploy.services as s
s.service, s.FunctionService, s.HumanService, s.ToolService, s.as_service, s.error_from_exception
s.as_service(lambda x: x, name="f")
assert "workflows" not in sys.modules
s.WorkflowService
assert "workflows" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PROCESS_S)
