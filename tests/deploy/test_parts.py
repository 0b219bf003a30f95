"""Systems that are put together by hand, as the published guides did: parts, their methods, who hears of the end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import typing
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import httpx2
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import FunctionTool, ToolMetadata
from tests.support import PROCESS_S, eventually
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    AgentService,
    AgentServiceTool,
    BaseOrchestrator,
    CallableMessageConsumer,
    Client,
    ComponentService,
    ControlPlaneConfig,
    ControlPlaneServer,
    HumanService,
    MetaServiceTool,
    QueueMessage,
    ServiceAsTool,
    ServiceComponent,
    ServiceTool,
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
    SimpleOrchestrator,
    SimpleOrchestratorConfig,
    ToolService,
    WorkflowService,
    WorkflowServiceConfig,
)
from llama_deploy.deploy import RedisMessageQueue, RemoteMessageConsumer
from llama_deploy.deploy.parts.publishers import MessageQueuePublisherMixin
from llama_deploy.errors import SettingError, ToolUnknownError
from llama_deploy.types import ActionTypes, NewTask, TaskDefinition, TaskResult


class Shout(Workflow):
    """Says it loud."""

    @step
    async def shout(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=str(ev.get("text") or ev.get("input")).upper())


class Relay(BaseOrchestrator):
    """Somebody's policy: one service after the other, each with what the one before has said; then a person hears."""

    ROUTE = ("shout", "agent")

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        said = state.setdefault(f"said_{task_def.task_id}", [])
        if len(said) == len(self.ROUTE):
            data = TaskResult(task_id=task_def.task_id, history=[], result=" > ".join(said)).model_dump()
            return [QueueMessage(type="human", action=ActionTypes.COMPLETED_TASK, data=data)], state
        task = task_def.model_copy(update={"input": said[-1]}) if said else task_def
        message = QueueMessage(
            type=self.ROUTE[len(said)], action=ActionTypes.NEW_TASK, data=NewTask(task=task, state={}).model_dump()
        )
        return [message], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state.setdefault(f"said_{result.task_id}", []).append(result.result)
        return state


class Chatty:
    """An agent as there once were: it chats, and remembers what was said."""

    def __init__(self, *tools: Any) -> None:
        self.heard: list[str] = []
        self._tools = tools

    async def achat(self, text: str) -> str:
        self.heard.append(text)
        answers = [str(await tool.acall(**{field: text})) for tool, field in self._tools]
        return " and ".join([text, *answers])

    def reset(self) -> None:
        self.heard.clear()


@contextlib.asynccontextmanager
async def running(*coroutines: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in ended] == [asyncio.CancelledError] * len(tasks)


@pytest.fixture
def config(free_port: int) -> ControlPlaneConfig:
    return ControlPlaneConfig(port=free_port, state_store_uri=":memory:")


async def test_parts_that_are_launched_as_servers(config: ControlPlaneConfig) -> None:
    message_queue = SimpleMessageQueue(port=8001)
    control_plane = ControlPlaneServer(
        message_queue.client,
        SimpleOrchestrator(**SimpleOrchestratorConfig(final_message_type="human").model_dump()),
        **config.model_dump(),
    )
    shout = WorkflowService(
        workflow=Shout(),
        message_queue=message_queue.client,
        **WorkflowServiceConfig(host="127.0.0.1", port=8003, service_name="shout").model_dump(),
    )
    heard: list[QueueMessage] = []
    human = CallableMessageConsumer(handler=heard.append, message_type="human")
    async with running(
        message_queue.launch_server(),
        control_plane.launch_server(),
        shout.launch_server(),
        (await control_plane.register_to_message_queue())(),
        (await message_queue.register_consumer(human))(),
        (await shout.register_to_message_queue())(),
    ):
        await shout.register_to_control_plane(f"http://{control_plane.host}:{control_plane.port}")
        session = await Client(control_plane_url=control_plane.url, timeout=PROCESS_S).core.sessions.create()
        assert await session.run("shout", text="hello") == "HELLO"
        await eventually(lambda: len(heard) == 1)
        assert heard[0].action is ActionTypes.COMPLETED_TASK
        assert (heard[0].type, heard[0].data["result"]) == ("human", "HELLO")
        assert "shout" in await control_plane.get_all_services()
        await shout.deregister_from_control_plane(control_plane.url)


async def test_parts_of_0_8_over_several_services_and_somebodys_orchestrator(config: ControlPlaneConfig) -> None:
    queue_config = SimpleMessageQueueConfig()
    message_queue = SimpleMessageQueue(queue_config)
    control_plane = ControlPlaneServer(message_queue, orchestrator=Relay(), config=config)
    agent = Chatty()
    services: list[Any] = [
        WorkflowService(Shout(), message_queue, WorkflowServiceConfig(host="127.0.0.1", port=1, service_name="shout")),
        AgentService(agent=agent, message_queue=message_queue, host="127.0.0.1", port=2, service_name="agent"),
    ]
    told: list[str] = []

    async def tell(message: QueueMessage) -> None:
        told.append(message.data["result"])

    async with running(
        SimpleMessageQueueServer(queue_config).launch_server(),
        control_plane.launch_server(),
        *(service.launch_server() for service in services),
    ):
        await message_queue.register_consumer(CallableMessageConsumer(handler=tell, message_type="human"), topic="t")
        for service in services:
            await service.register_to_control_plane(control_plane.url)
        session = await Client(control_plane_url=control_plane.url, timeout=PROCESS_S).core.sessions.create()
        assert await session.run("shout", text="hello") == "HELLO > HELLO"
        await eventually(lambda: told == ["HELLO > HELLO"])
        assert agent.heard == ["HELLO"]


async def test_parts_that_are_launched_in_one_process_without_a_port() -> None:
    message_queue = SimpleMessageQueue()
    control_plane = ControlPlaneServer(message_queue, SimpleOrchestrator(), state_store_uri=":memory:")
    shout = WorkflowService(Shout(), message_queue=message_queue, service_name="shout")
    person = HumanService(
        message_queue=message_queue,
        service_name="person",
        fn_input=lambda prompt, task_id: f"{prompt} yes",
        human_input_prompt="May I? {input_str}",
    )
    await message_queue.register_consumer(control_plane.as_consumer())
    await message_queue.register_consumer(shout.as_consumer())
    tasks = [await message_queue.launch_local(), await shout.launch_local(), await person.launch_local()]

    async def served() -> bool:
        return {"shout", "person"} <= (await control_plane.get_all_services()).keys()

    await eventually(served)
    session = await control_plane.create_session()
    task = TaskDefinition(input='{"text": "hello"}', agent_id="shout")
    await control_plane.add_task_to_session(session, task)
    events = [event async for event in control_plane.get_task_result_stream(session, task.task_id)]
    assert events == [{"result": "HELLO"}]
    result = await control_plane.get_task_result(task.task_id, session)
    assert result is not None
    assert result.result == "HELLO"
    asked = await control_plane.send_task_to_service(TaskDefinition(input="Sing?", agent_id="person"))
    assert asked.session_id is not None

    async def answered() -> Any:
        return await control_plane.get_task_result(asked.task_id, str(asked.session_id))

    assert (await eventually(answered)).result == "May I? Sing? yes"
    message = QueueMessage(action=ActionTypes.NEW_TASK, data=TaskDefinition(input="{}", agent_id="shout").model_dump())
    await message_queue.publish(message)
    await message_queue.cleanup_local(["shout"])
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_services_of_tools_and_people_are_tools_of_an_agent(config: ControlPlaneConfig) -> None:
    message_queue = SimpleMessageQueue()
    control_plane = ControlPlaneServer(message_queue, SimpleOrchestrator(), config=config)

    def double(number: str) -> str:
        """Says it twice."""
        return number * 2

    class Adding:
        async def arun_component(self, **given: Any) -> dict[str, Any]:
            return {"sum": sum(given.values())}

    tool = FunctionTool.from_defaults(fn=double)
    tools = ToolService(message_queue, tools=[tool], service_name="tools")
    person = HumanService(message_queue, service_name="person", fn_input=lambda prompt, task_id: f"{prompt}?")
    adding = ComponentService(component=Adding(), message_queue=message_queue, service_name="adding")
    meta = MetaServiceTool(tool_metadata=tool.metadata, message_queue=message_queue, tool_service_name="tools")
    ask: AgentServiceTool = ServiceAsTool.from_service_definition(message_queue, person.service_definition)
    agent = AgentService(Chatty((meta, "number"), (ask, "input")), message_queue, service_name="agent")
    async with running(
        control_plane.launch_server(), *(one.processing_loop() for one in (tools, person, adding, agent))
    ):
        client = Client(control_plane_url=control_plane.url, timeout=PROCESS_S)

        async def served() -> bool:
            with contextlib.suppress(Exception):
                return {"adding", "agent", "person", "tools"} <= {one.id for one in await client.core.services.list()}
            return False

        await eventually(served)
        session = await client.core.sessions.create()
        task_id = await session.create_task(TaskDefinition(input="7", service_id="agent"))
        assert await client.result(task_id) == "7 and 77 and 7?"
        assert await session.run("adding", a=1, b=2) == '{"sum":3}'
        found = await MetaServiceTool.from_tool_service("double", message_queue, tool_service_name="tools")
        assert (found.metadata.name, found.metadata.description) == ("double", tool.metadata.description)
        assert (await found.acall(number="8")).content == "88"  # outside of any step
        assert await asyncio.to_thread(lambda: found.call("9").content) == "99"
        with pytest.raises(ToolUnknownError, match="no tool 'triple'"):
            await MetaServiceTool.from_tool_service("triple", message_queue, tool_service=tools)
        await agent.reset_agent()
    assert ask.metadata.name == "person-as-tool"
    assert ServiceTool.from_service_definition(person.service_definition).call("x").content == "x"
    assert ServiceComponent.from_component_service(adding).module_type.value == "component"


def asks_both(messages: Any) -> ChatMessage:
    """What the model of the agent below says: first it calls its tools, then it repeats what they said."""
    said = [str(one.content) for one in messages if one.role.value == "tool"]
    if said:
        return ChatMessage(role="assistant", content=" and ".join(said))
    calls = [
        ToolCallBlock(tool_call_id="1", tool_name="double", tool_kwargs={"number": "4"}),
        ToolCallBlock(tool_call_id="2", tool_name="person-as-tool", tool_kwargs={"input": "may I"}),
    ]
    return ChatMessage(role="assistant", blocks=calls)


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # a workflow is looked through
async def test_an_agent_workflow_has_services_as_tools() -> None:
    message_queue = SimpleMessageQueue()
    control_plane = ControlPlaneServer(message_queue, SimpleOrchestrator(), state_store_uri=":memory:")

    def double(number: str) -> str:
        """Says it twice."""
        return number * 2

    tools = ToolService(message_queue, tools=[FunctionTool.from_defaults(fn=double)], service_name="tools")
    person = HumanService(message_queue, service_name="person", fn_input=lambda prompt, task_id: f"{prompt}? yes")
    meta = await MetaServiceTool.from_tool_service("double", message_queue, tool_service=tools)
    ask = AgentServiceTool.from_service_definition(message_queue, person.service_definition)
    model = MockFunctionCallingLLM(response_generator=lambda messages, **_: asks_both(messages), is_chat_model=True)
    agent = AgentService(
        agent=FunctionAgent(name="helper", description="Helps.", tools=[meta, ask], llm=model),
        message_queue=message_queue,
        service_name="helper",
        description="Useful for helping.",
        host="127.0.0.1",
        port=8002,
    )
    tasks = [await one.launch_local() for one in (tools, person, agent)]

    async def served() -> bool:
        return {"tools", "person", "helper"} <= (await control_plane.get_all_services()).keys()

    await eventually(served)
    task = await control_plane.send_task_to_service(TaskDefinition(input="Help!", agent_id="helper"))

    async def result() -> Any:
        return await control_plane.get_task_result(task.task_id, str(task.session_id))

    assert (await eventually(result, PROCESS_S)).result == "44 and may I? yes"
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_service_is_made_a_tool_as_published() -> None:
    message_queue = SimpleMessageQueue()
    control_plane = ControlPlaneServer(message_queue, SimpleOrchestrator(), state_store_uri=":memory:")
    person = HumanService(message_queue, service_name="person", fn_input=lambda prompt, task_id: f"{prompt}? yes")
    metadata = ToolMetadata(name="ask", description="Asks a person.")
    made: Any = [
        ServiceAsTool(metadata, message_queue, "person", None, {}, 20.0),  # type: ignore[call-arg, arg-type]
        ServiceAsTool(tool_metadata=metadata, message_queue=message_queue, service_name="person"),  # type: ignore[call-arg]
    ]
    assert [type(tool) for tool in made] == [AgentServiceTool, AgentServiceTool]
    assert [tool.metadata.name for tool in made] == ["ask", "ask"]
    assert ServiceAsTool("person", name="ask").name == "ask"
    agent = AgentService(Chatty((made[0], "input"), (made[1], "input")), message_queue, service_name="agent")
    tasks = [await one.launch_local() for one in (person, agent)]

    async def served() -> bool:
        return {"person", "agent"} <= (await control_plane.get_all_services()).keys()

    await eventually(served)
    task = await control_plane.send_task_to_service(TaskDefinition(input="may I", agent_id="agent"))

    async def result() -> Any:
        return await control_plane.get_task_result(task.task_id, str(task.session_id))

    assert (await eventually(result)).result == "may I and may I? yes and may I? yes"
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_program_adds_routes_to_the_application_and_the_control_plane_is_behind_them(
    config: ControlPlaneConfig,
) -> None:
    control_plane = ControlPlaneServer(SimpleMessageQueue(), SimpleOrchestrator(), config=config)

    @control_plane.app.get("/hello")
    async def hello() -> str:
        return "hello"

    async with (
        running(control_plane.launch_server()),
        httpx2.AsyncClient(base_url=control_plane.url, timeout=PROCESS_S) as http,
    ):

        async def listens() -> bool:
            with contextlib.suppress(httpx2.ConnectError):
                return bool((await http.get("/hello")).json() == "hello")
            return False

        await eventually(listens)
        session_id = (await http.post("/sessions/create")).json()
        assert (await http.get(f"/sessions/{session_id}")).json()["session_id"] == session_id
        shout = WorkflowService(Shout(), message_queue=SimpleMessageQueue(), service_name="shout")
        await shout.register_to_control_plane(control_plane.url)  # whose connection passes it as well
        client = Client(control_plane_url=control_plane.url, timeout=20)
        assert await (await client.core.sessions.get(session_id)).run("shout", text="hello") == "HELLO"
        await shout.deregister_from_control_plane()
        assert (await http.get("/nothing")).json()["code"] == "LD201"


async def test_another_server_runs_the_application() -> None:
    control_plane = ControlPlaneServer(SimpleMessageQueue(), SimpleOrchestrator(), state_store_uri=":memory:")
    transport = httpx2.ASGITransport(app=control_plane.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=PROCESS_S) as http:
        session_id = (await http.post("/sessions/create")).json()
    assert (await control_plane.get_session(session_id)).session_id == session_id
    assert control_plane.app is control_plane.app


async def test_what_publishes_is_a_mixin_for_classes_of_ones_own() -> None:
    message_queue = SimpleMessageQueue()
    control_plane = ControlPlaneServer(message_queue, SimpleOrchestrator(), state_store_uri=":memory:")
    shout = WorkflowService(Shout(), message_queue=message_queue, service_name="shout")
    serving = await shout.launch_local()

    class Submitter(MessageQueuePublisherMixin):
        def __init__(self) -> None:
            self.message_queue = message_queue

    async def served() -> bool:
        return "shout" in await control_plane.get_all_services()

    await eventually(served)
    task = TaskDefinition(input='{"text": "hello"}', agent_id="shout", session_id=await control_plane.create_session())
    message = QueueMessage(action=ActionTypes.NEW_TASK, data=task.model_dump())
    await Submitter().publish(message)
    assert "Submitter-" in message.publisher_id

    async def result() -> Any:
        return await control_plane.get_task_result(task.task_id, str(task.session_id))

    assert (await eventually(result)).result == "HELLO"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_a_message_is_sent_to_a_url() -> None:
    received: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = Thread(target=server.handle_request)
    thread.start()
    consumer = RemoteMessageConsumer(url=f"http://127.0.0.1:{server.server_address[1]}/", message_type="human")
    await consumer.process_message(QueueMessage(type="human", data={"result": "done"}))
    thread.join()
    server.server_close()
    assert QueueMessage.model_validate_json(received[0]).data == {"result": "done"}


def test_the_same_names_make_ours_where_no_queue_is_given() -> None:
    assert WorkflowService(Shout(), name="shout").definition.memory == "none"
    assert HumanService("boss", prompt="{input}").definition.service_name == "boss"
    assert ToolService([], name="tools").definition.service_name == "tools"


@pytest.mark.parametrize("cls", [HumanService, ToolService, WorkflowService])
def test_type_checkers_are_told_our_own_arguments_first(cls: Any) -> None:
    ours = next(base for base in cls.__mro__ if base.__module__.startswith("llama_deploy.services."))
    told = inspect.signature(typing.get_overloads(cls.__init__)[0])
    assert told.parameters == inspect.signature(ours.__init__).parameters


def test_what_cannot_be_is_refused() -> None:
    queue = SimpleMessageQueue()
    with pytest.raises(TypeError, match="'portt'"):
        ControlPlaneServer(queue, SimpleOrchestrator(), portt=1)
    with pytest.raises(SettingError, match="no orchestrator"):
        ControlPlaneServer(queue, "simple")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'nam'"):
        WorkflowService(Shout(), queue, nam="x")
    with pytest.raises(TypeError, match="'service_name'"):
        WorkflowService(Shout(), service_name="x")  # type: ignore[call-overload]
    with pytest.raises(SettingError, match="no message queue"):
        ToolService([], message_queue="redis://localhost")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="input_str"):
        HumanService(queue, human_input_prompt="{x}")
    with pytest.raises(SettingError, match="no component"):
        ComponentService(component=print, message_queue=queue)
    with pytest.raises(TypeError, match="'ports'"):
        RedisMessageQueue(ports=1)
