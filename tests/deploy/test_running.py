"""`deploy_core`, `deploy_workflow` and the client of the published guides, in one script and in three processes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support import PROCESS_S, eventually
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import (
    AsyncLlamaDeployClient,
    BaseOrchestrator,
    Client,
    ControlPlaneConfig,
    QueueMessage,
    SimpleMessageQueueConfig,
    SimpleOrchestratorConfig,
    TaskDefinition,
    TaskFailed,
    TaskResult,
    WorkflowServiceConfig,
    deploy_core,
    deploy_workflow,
)
from llama_deploy.errors import (
    ServiceUnknownError,
    SettingError,
    UnauthenticatedError,
    UnsafeListenError,
    WaitTimeoutError,
)
from llama_deploy.types import ActionTypes, NewTask
from llama_deploy.types.access import HASH_PREFIX, digest_of


class Progress(Event):
    number: int


class Question(InputRequiredEvent):
    question: str


class Greeting(Workflow):
    """Greets, and counts in its context how often it did."""

    @step
    async def greet(self, context: Context, event: StartEvent) -> StopEvent:
        name = event.get("name")
        if name == "nobody":
            raise ValueError("there is nobody")
        count = await context.store.get("count", default=0) + 1
        await context.store.set("count", count)
        context.write_event_to_stream(Progress(number=count))
        return StopEvent(result=f"hello {name}, {count}")


class Asking(Workflow):
    @step
    async def ask(self, event: StartEvent) -> Question:
        del event
        return Question(question="name?")

    @step
    async def answer(self, event: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=f"hello {event.get('response')}")


class Chain(BaseOrchestrator):
    """Somebody's orchestrator: greets twice, and publishes for a person."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        answers = state.setdefault(f"answers_{task_def.task_id}", [])
        if len(answers) == 2:
            data = TaskResult(task_id=task_def.task_id, history=[], result=" / ".join(answers)).model_dump()
            return [QueueMessage(type="human", action=ActionTypes.COMPLETED_TASK, data=data)], state
        data = NewTask(task=task_def, state={}).model_dump()
        return [QueueMessage(type="greeting", action=ActionTypes.NEW_TASK, data=data)], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state.setdefault(f"answers_{result.task_id}", []).append(result.result)
        return state


class Noting(Chain):
    """One that keeps a list of its own under a key of its own, for all tasks of a session."""

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state.setdefault("everything that was said", []).append(result.result)
        return await super().add_result_to_state(result, state)


@pytest.fixture
def config(free_port: int) -> ControlPlaneConfig:
    return ControlPlaneConfig(port=free_port, state_store_uri=":memory:")


@contextlib.asynccontextmanager
async def script(config: ControlPlaneConfig, *, orchestrator: Any = None) -> AsyncIterator[AsyncLlamaDeployClient]:
    """What a guide shows as one script; nobody minds in which order its parts start."""
    tasks = [
        asyncio.create_task(
            deploy_workflow(
                Greeting(), WorkflowServiceConfig(host="127.0.0.1", port=8002, service_name="greeting"), config
            )
        ),
        asyncio.create_task(
            deploy_workflow(Asking(), WorkflowServiceConfig(host="127.0.0.1", port=8003, service_name="asking"), config)
        ),
        asyncio.create_task(
            deploy_core(
                control_plane_config=config,
                message_queue_config=SimpleMessageQueueConfig(),
                orchestrator_config=orchestrator,
            )
        ),
    ]
    client = AsyncLlamaDeployClient(config, timeout=PROCESS_S)

    async def served() -> bool:
        for task in tasks:
            if task.done():
                task.result()
        with contextlib.suppress(Exception):
            return len(await client.list_services()) == 2
        return False

    try:
        await eventually(served, PROCESS_S)
        yield client
    finally:
        for task in reversed(tasks):
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in ended] == [asyncio.CancelledError] * 3


async def test_one_script_runs_streams_and_remembers(config: ControlPlaneConfig) -> None:
    async with script(config, orchestrator=SimpleOrchestratorConfig(max_retries=0)) as client:
        session = await client.create_session()
        assert await session.run("greeting", name="Ada") == "hello Ada, 1"
        task_id = await session.run_nowait("greeting", name="Eve")
        events = [event async for event in session.get_task_result_stream(task_id)]
        assert events == [{"number": 2}, {"result": "hello Eve, 2"}]
        other = await client.get_or_create_session("other")
        assert other.session_id == "other"
        assert await other.run("greeting", name="Ada") == "hello Ada, 1"
        with pytest.raises(TaskFailed, match="there is nobody"):
            await session.run("greeting", name="nobody")
        with pytest.raises(ServiceUnknownError):
            await session.run("grating", name="Ada")
        with pytest.raises(ValueError, match="no session"):
            await client.get_session("unknown")


async def test_a_person_answers_in_the_loop(config: ControlPlaneConfig) -> None:
    async with script(config) as client:
        session = await client.create_session()
        task_id = await session.run_nowait("asking")
        async for event in session.get_task_result_stream(task_id):
            if "question" in event:
                assert await session.get_task_result(task_id) is None
                await session.send_event(HumanResponseEvent(response="Ada"), "asking", task_id)  # type: ignore[call-arg]
        result = await session.get_task_result(task_id)
        assert result is not None
        assert result.result == "hello Ada"
        hurried = AsyncLlamaDeployClient(config, timeout=0.05)
        with pytest.raises(TimeoutError, match="has not ended after") as timed_out:
            await (await hurried.get_session(session.session_id)).run("asking")
        assert isinstance(timed_out.value, WaitTimeoutError)
        assert await session.get_task_result("unknown") is None


async def test_any_orchestrator_decides(config: ControlPlaneConfig) -> None:
    async with script(config, orchestrator=Chain()) as client:
        session = await client.create_session()
        assert await session.run("greeting", name="Ada") == "hello Ada, 1 / hello Ada, 2"


async def test_what_an_orchestrator_keeps_is_whole_though_tasks_run_at_the_same_time(
    config: ControlPlaneConfig,
) -> None:
    async with script(config, orchestrator=Noting()) as client:
        session = await client.create_session()
        await asyncio.gather(*(session.run("greeting", name=f"{number}") for number in range(20)))
        said = (await session.definition()).state["everything that was said"]
        assert sorted(text.rpartition(", ")[2] for text in said) == sorted(f"{count}" for count in range(1, 41))


async def test_what_cannot_be_is_refused(config: ControlPlaneConfig) -> None:
    with pytest.raises(SettingError, match="configures no orchestrator"):
        await deploy_core(config, orchestrator_config={"max_retries": 3})  # type: ignore[arg-type]
    with pytest.raises(UnsafeListenError):
        await deploy_core(config.model_copy(update={"host": "0.0.0.0"}))


def test_the_configuration_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_PLANE_PORT", "8123")
    monkeypatch.setenv("SIMPLE_MESSAGE_QUEUE_PORT", "8124")
    assert ControlPlaneConfig().url == "http://127.0.0.1:8123"
    assert ControlPlaneConfig(host="example.org", port=None, use_tls=True).url == "https://example.org"
    assert SimpleMessageQueueConfig().port == 8124


CORE = """
import asyncio
from llama_deploy import ControlPlaneConfig, SimpleMessageQueueConfig, deploy_core
asyncio.run(deploy_core(control_plane_config=ControlPlaneConfig(), message_queue_config=SimpleMessageQueueConfig()))
"""
SERVICE = """
import asyncio
from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

class Shout(Workflow):
    @step
    async def shout(self, event: StartEvent) -> StopEvent:
        return StopEvent(result=event.text.upper())

config = WorkflowServiceConfig(host="127.0.0.1", port=8002, service_name="shout")
asyncio.run(deploy_workflow(workflow=Shout(), workflow_config=config, control_plane_config=ControlPlaneConfig()))
"""
CLIENT = """
import time
from llama_deploy import ControlPlaneConfig, LlamaDeployClient
client = LlamaDeployClient(ControlPlaneConfig(), timeout=120)
for _ in range(200):
    try:
        if client.list_services():
            break
    except Exception:
        pass
    time.sleep(0.1)
session = client.create_session()
print(session.run("shout", text="hello"))
"""


def test_three_processes(tmp_path: Path, free_port: int) -> None:
    environment = {"CONTROL_PLANE_PORT": str(free_port), "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}

    def start(program: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    with start(SERVICE) as service, start(CORE) as core:
        with start(CLIENT) as client:
            said, _ = client.communicate(timeout=PROCESS_S)
        service.terminate()
        core.terminate()
    assert said == "HELLO\n"
    assert (tmp_path / ".llama_deploy" / "llama_deploy.db").exists()


TOKEN = "token-of-the-old-programs-0123456789"


async def test_a_core_asks_for_tokens_where_a_file_says_so(
    config: ControlPlaneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "access.yml"
    file.write_text(f"tokens:\n  old: {{hash: '{HASH_PREFIX}{digest_of(TOKEN).hex()}', scopes: [run, serve]}}\n")
    monkeypatch.setenv("CONTROL_PLANE_ACCESS_FILE", str(file))
    guarded = ControlPlaneConfig(port=config.port, state_store_uri=":memory:")
    monkeypatch.setenv("LLAMA_DEPLOY_TOKEN", TOKEN)
    async with script(guarded) as client:
        session = await client.create_session()
        assert await session.run("greeting", name="Ada") == "hello Ada, 1"
        monkeypatch.delenv("LLAMA_DEPLOY_TOKEN")
        with pytest.raises(UnauthenticatedError):
            await Client(control_plane_url=guarded.url, timeout=10).core.sessions.create()


async def test_pages_of_listed_origins_may_ask(config: ControlPlaneConfig) -> None:
    listed = config.model_copy(update={"cors_origins": ["https://desk.example/", "*"]})
    async with script(listed), httpx2.AsyncClient(base_url=config.url, timeout=PROCESS_S) as http:
        answer = await http.get("/services", headers={"origin": "https://desk.example"})
        assert answer.headers["access-control-allow-origin"] == "https://desk.example"
        other = await http.get("/services", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
