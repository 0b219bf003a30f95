"""The published Python surface as facts: each name with its arguments in order, their defaults, and its fields.

What is listed must be there under that name, in that place of the arguments, with that default; more may follow.
"""

from __future__ import annotations

import importlib
import inspect
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from llama_deploy import Client
from llama_deploy.deploy.sdk.blocking import Blocking

NONE: dict[str, Any] = {}
NEEDED = inspect.Parameter.empty


def found(place: str) -> Any:
    """What stands at `module:name.attribute`."""
    module, _, path = place.partition(":")
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    return value


SESSIONS = (
    "llama_deploy.client.sync_client:SessionClient",
    "llama_deploy.client.async_client:AsyncSessionClient",
    "llama_deploy.client.models.core:Session",
)
OF_SESSIONS: dict[str, dict[str, Any]] = {
    "run": {"service_name": NEEDED},
    "run_nowait": {"service_name": NEEDED},
    "create_task": {"task_def": NEEDED},
    "get_tasks": NONE,
    "get_task_result": {"task_id": NEEDED},
    "get_task_result_stream": {"task_id": NEEDED},
}
CLIENTS = ("llama_deploy:LlamaDeployClient", "llama_deploy:AsyncLlamaDeployClient")
OF_CLIENTS: dict[str, dict[str, Any]] = {
    "": {"control_plane_config": None, "timeout": 120},
    ".create_session": {"poll_interval": 0.5},
    ".list_sessions": NONE,
    ".get_session": {"session_id": NEEDED},
    ".get_or_create_session": {"session_id": NEEDED},
    ".delete_session": {"session_id": NEEDED},
    ".get_service": {"service_name": NEEDED},
    ".list_services": NONE,
    ".register_service": {"service_def": NEEDED},
    ".deregister_service": {"service_name": NEEDED},
}
CALLS: dict[str, dict[str, Any]] = {
    "llama_deploy.orchestrators.base:BaseOrchestrator.get_next_messages": {"task_def": NEEDED, "state": NEEDED},
    "llama_deploy.orchestrators.base:BaseOrchestrator.add_result_to_state": {"result": NEEDED, "state": NEEDED},
    "llama_deploy.orchestrators.simple:SimpleOrchestrator": {"max_retries": 3, "final_message_type": "human"},
    "llama_deploy.orchestrators.utils:get_result_key": {"task_id": NEEDED},
    "llama_deploy.orchestrators.utils:get_stream_key": {"task_id": NEEDED},
    "llama_deploy.orchestrators.simple:get_result_key": {"task_id": NEEDED},
    "llama_deploy.types:generate_id": NONE,
    "llama_deploy.types:ChatMessage.from_str": {"content": NEEDED, "role": "user"},
    "llama_deploy.messages.base:QueueMessageStats.timestamp_str": {"format": "%Y-%m-%d %H:%M:%S"},
    "llama_deploy:deploy_core": {
        "control_plane_config": None,
        "message_queue_config": None,
        "orchestrator_config": None,
        "disable_message_queue": False,
        "disable_control_plane": False,
    },
    "llama_deploy:deploy_workflow": {"workflow": NEEDED, "workflow_config": NEEDED, "control_plane_config": None},
    "llama_deploy:ControlPlaneServer": {
        "message_queue": None,
        "orchestrator": None,
        "publish_callback": None,
        "state_store": None,
        "config": None,
    },
    "llama_deploy.tools:AgentServiceTool": {
        "tool_metadata": NEEDED,
        "message_queue": NEEDED,
        "service_name": NEEDED,
        "publish_callback": None,
        "tool_call_results": None,
        "timeout": 60.0,
        "step_interval": 0.1,
        "raise_timeout": False,
    },
    "llama_deploy.tools:MetaServiceTool": {
        "tool_metadata": NEEDED,
        "message_queue": NEEDED,
        "tool_service_name": NEEDED,
        "publish_callback": None,
        "tool_call_results": None,
        "timeout": 10.0,
    },
    **{f"{client}{method}": arguments for client in CLIENTS for method, arguments in OF_CLIENTS.items()},
    **{f"{session}.{method}": arguments for session in SESSIONS for method, arguments in OF_SESSIONS.items()},
    f"{SESSIONS[0]}.send_event": {"ev": NEEDED, "service_name": NEEDED, "task_id": NEEDED},
    f"{SESSIONS[1]}.send_event": {"ev": NEEDED, "service_name": NEEDED, "task_id": NEEDED},
    f"{SESSIONS[2]}.send_event": {"service_name": NEEDED, "task_id": NEEDED, "ev": NEEDED},
    "llama_deploy.client.sync_client:SessionClient.get_current_task": NONE,
    "llama_deploy.client.async_client:AsyncSessionClient.get_current_task": NONE,
    "llama_deploy.client.models.core:ServiceCollection.list": NONE,
    "llama_deploy.client.models.core:ServiceCollection.register": {"service": NEEDED},
    "llama_deploy.client.models.core:ServiceCollection.deregister": {"service_name": NEEDED},
    "llama_deploy.client.models.core:SessionCollection.list": NONE,
    "llama_deploy.client.models.core:SessionCollection.create": NONE,
    "llama_deploy.client.models.core:SessionCollection.get": {"id": NEEDED},
    "llama_deploy.client.models.core:SessionCollection.get_or_create": {"id": NEEDED},
    "llama_deploy.client.models.core:SessionCollection.delete": {"session_id": NEEDED},
    "llama_deploy.client.models.apiserver:ApiServer.status": NONE,
    "llama_deploy.client.models.apiserver:DeploymentCollection.list": NONE,
    "llama_deploy.client.models.apiserver:DeploymentCollection.get": {"id": NEEDED},
    "llama_deploy.client.models.apiserver:DeploymentCollection.create": {"config": NEEDED, "reload": False},
    "llama_deploy.client.models.apiserver:TaskCollection.run": {"task": NEEDED},
    "llama_deploy.client.models.apiserver:TaskCollection.create": {"task": NEEDED},
    "llama_deploy.client.models.apiserver:TaskCollection.list": NONE,
    "llama_deploy.client.models.apiserver:Task.results": NONE,
    "llama_deploy.client.models.apiserver:Task.events": NONE,
    "llama_deploy.client.models.apiserver:Task.send_event": {"ev": NEEDED, "service_name": NEEDED},
    "llama_deploy.client.models.apiserver:SessionCollection.create": NONE,
    "llama_deploy.client.models.apiserver:SessionCollection.list": NONE,
    "llama_deploy.client.models.apiserver:SessionCollection.get": {"id": NEEDED},
    "llama_deploy.client.models.apiserver:SessionCollection.delete": {"session_id": NEEDED},
}
"""What is called, and with what, in order."""

MODELS: dict[str, dict[str, Any]] = {
    "llama_deploy.orchestrators.simple:SimpleOrchestratorConfig": {"max_retries": 3, "final_message_type": None},
    "llama_deploy.types:TaskDefinition": {"input": NEEDED, "task_id": str, "session_id": None, "agent_id": None},
    "llama_deploy.types:SessionDefinition": {"session_id": str, "task_ids": [], "state": {}},
    "llama_deploy.types:NewTask": {"task": NEEDED, "state": {}},
    "llama_deploy.types:TaskResult": {"task_id": NEEDED, "history": NEEDED, "result": NEEDED, "data": {}},
    "llama_deploy.types:TaskStream": {"task_id": NEEDED, "session_id": None, "data": NEEDED, "index": NEEDED},
    "llama_deploy.types:EventDefinition": {"service_id": NEEDED, "event_obj_str": NEEDED},
    "llama_deploy.types:ChatMessage": {"role": "user", "content": "", "additional_kwargs": {}},
    "llama_deploy.types:ToolCallBundle": {"tool_name": NEEDED, "tool_args": NEEDED, "tool_kwargs": NEEDED},
    "llama_deploy.types:ToolCall": {"id_": str, "tool_call_bundle": NEEDED, "source_id": NEEDED},
    "llama_deploy.types:ToolCallResult": {"id_": NEEDED, "tool_message": NEEDED, "result": NEEDED},
    "llama_deploy.types:ServiceDefinition": {
        "service_name": NEEDED,
        "description": NEEDED,
        "prompt": [],
        "host": None,
        "port": None,
    },
    "llama_deploy.types:HumanResponse": {"result": NEEDED},
    "llama_deploy.messages.base:QueueMessageStats": {
        "publish_time": None,
        "process_start_time": None,
        "process_end_time": None,
    },
    "llama_deploy.messages.base:QueueMessage": {
        "id_": str,
        "publisher_id": "default",
        "data": {},
        "action": None,
        "stats": BaseModel,
        "type": "default",
    },
    "llama_deploy:ControlPlaneConfig": {
        "host": "127.0.0.1",
        "port": 8000,
        "internal_host": None,
        "internal_port": None,
        "step_interval": 0.1,
        "running": True,
        "cors_origins": None,
        "services_store_key": "services",
        "tasks_store_key": "tasks",
        "session_store_key": "sessions",
        "state_store_uri": None,
        "topic_namespace": "llama_deploy",
        "use_tls": False,
    },
    "llama_deploy:SimpleMessageQueueConfig": {
        "host": "127.0.0.1",
        "port": 8001,
        "internal_host": None,
        "internal_port": None,
    },
    "llama_deploy:WorkflowServiceConfig": {
        "host": NEEDED,
        "port": None,
        "service_name": NEEDED,
        "internal_host": None,
        "internal_port": None,
        "description": "A service that wraps a llama-index workflow.",
        "max_concurrent_tasks": 8,
        "raise_exceptions": False,
        "step_interval": 0.1,
    },
    "llama_deploy.message_queues.redis:RedisMessageQueueConfig": {
        "url": "redis://localhost:6379",
        "host": None,
        "port": None,
        "db": None,
        "username": None,
        "password": None,
        "ssl": None,
        "exclusive_mode": False,
    },
    "llama_deploy.message_queues.rabbitmq:RabbitMQMessageQueueConfig": {
        "url": "amqp://guest:guest@localhost/",
        "exchange_name": "llama-deploy",
        "username": None,
        "password": None,
        "host": None,
        "port": None,
        "vhost": "",
        "secure": None,
    },
    "llama_deploy.message_queues.apache_kafka:KafkaMessageQueueConfig": {
        "url": "localhost:9092",
        "host": None,
        "port": None,
    },
    "llama_deploy.message_queues.aws:AWSMessageQueueConfig": {
        "aws_region": None,
        "aws_access_key_id": None,
        "aws_secret_access_key": None,
    },
}
"""What has fields, and their defaults: a type stands for a value that is made, of that type."""

ENUMS: dict[str, dict[str, str]] = {
    "llama_deploy.types:ActionTypes": {
        "NEW_TASK": "new_task",
        "COMPLETED_TASK": "completed_task",
        "REQUEST_FOR_HELP": "request_for_help",
        "NEW_TOOL_CALL": "new_tool_call",
        "COMPLETED_TOOL_CALL": "completed_tool_call",
        "TASK_STREAM": "task_stream",
        "SEND_EVENT": "send_event",
    },
    "llama_deploy.types:MessageRole": {
        role.upper(): role
        for role in ("system", "developer", "user", "assistant", "function", "tool", "chatbot", "model")
    },
}

VARIABLES = {
    "llama_deploy.orchestrators.simple:SimpleOrchestratorConfig": ("SIMPLE_ORCHESTRATOR_MAX_RETRIES", "7"),
    "llama_deploy:ControlPlaneConfig": ("CONTROL_PLANE_PORT", "7"),
    "llama_deploy:SimpleMessageQueueConfig": ("SIMPLE_MESSAGE_QUEUE_PORT", "7"),
    "llama_deploy.message_queues.redis:RedisMessageQueueConfig": ("REDIS_PORT", "7"),
    "llama_deploy.message_queues.rabbitmq:RabbitMQMessageQueueConfig": ("RABBITMQ_PORT", "7"),
    "llama_deploy.message_queues.apache_kafka:KafkaMessageQueueConfig": ("KAFKA_PORT", "7"),
}


@pytest.mark.parametrize("place", CALLS)
def test_what_is_called_takes_its_arguments_in_order(place: str) -> None:
    parameters = [one for one in inspect.signature(found(place)).parameters.values() if one.name != "self"]
    wanted = CALLS[place]
    taken = parameters[: len(wanted)]
    assert {one.name: one.default for one in taken} == wanted
    assert [one.name for one in taken] == list(wanted)
    assert {one.kind for one in taken} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    variable = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    beyond = [one.name for one in parameters[len(wanted) :] if one.default is NEEDED and one.kind not in variable]
    assert beyond == []


@pytest.mark.parametrize("place", MODELS)
def test_models_have_their_fields_with_their_defaults(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "PORT", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    fields = found(place).model_fields
    for name, default in MODELS[place].items():
        field = fields[name]
        assert field.is_required() is (default is NEEDED), name
        if default is NEEDED:
            continue
        made = field.get_default(call_default_factory=True)
        assert isinstance(made, default) if isinstance(default, type) else made == default, name
    needed = {name for name, field in fields.items() if field.is_required()}
    assert needed == {name for name, default in MODELS[place].items() if default is NEEDED}


@pytest.mark.parametrize("place", ENUMS)
def test_enums_are_their_texts(place: str) -> None:
    cls = found(place)
    assert issubclass(cls, Enum)
    assert issubclass(cls, str)
    assert {name: cls[name].value for name in ENUMS[place]} == ENUMS[place]


@pytest.mark.parametrize("place", VARIABLES)
def test_settings_come_from_their_variables(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, text = VARIABLES[place]
    monkeypatch.setenv(variable, text)
    field = variable.removeprefix(found(place).model_config["env_prefix"]).lower()
    assert getattr(found(place)(), field) == 7


def test_the_client_has_the_published_defaults_and_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("api_server_url", "control_plane_url", "disable_ssl", "timeout", "poll_interval")
    for name in names:
        monkeypatch.delenv(f"LLAMA_DEPLOY_{name.upper()}", raising=False)

    def said(client: Client) -> list[Any]:
        return [getattr(client, name) for name in names]

    assert said(Client()) == ["http://localhost:4501", "http://localhost:8000", False, 120.0, 0.5]
    given = {"api_server_url": "http://a", "control_plane_url": "http://b", "timeout": 1.0, "poll_interval": 2.0}
    assert said(Client(**given)) == ["http://a", "http://b", False, 1.0, 2.0]  # type: ignore[arg-type]
    for name, text in zip(names, ("http://c", "http://d", "true", "3", "4"), strict=True):
        monkeypatch.setenv(f"LLAMA_DEPLOY_{name.upper()}", text)
    assert said(Client()) == ["http://c", "http://d", True, 3.0, 4.0]


def test_the_parts_of_the_client_are_all_there_and_blocking_as_well() -> None:
    client = Client(control_plane_url="http://127.0.0.1:1", api_server_url="http://127.0.0.1:1")
    for part in (client, client.sync):
        core, server = part.core, part.apiserver
        assert all(callable(getattr(core.services, name)) for name in ("list", "register", "deregister"))
        assert all(
            callable(getattr(core.sessions, name)) for name in ("list", "create", "get", "get_or_create", "delete")
        )
        assert callable(server.status)
        assert all(callable(getattr(server.deployments, name)) for name in ("list", "get", "create"))
    assert isinstance(client.sync.core, Blocking)


def test_the_names_of_either_generation_are_one_field() -> None:
    task = found("llama_deploy.types:TaskDefinition")
    for name in ("agent_id", "service_id"):
        made = task(input="", **{name: "echo"})
        assert (made.agent_id, made.service_id) == ("echo", "echo")
        dumped = made.model_dump()
        assert (dumped["agent_id"], dumped["service_id"]) == ("echo", "echo")
    event = found("llama_deploy.types:EventDefinition")
    assert event(agent_id="a", event_obj_str="{}").service_id == "a"
    assert found("llama_deploy.types:SessionDefinition")(task_ids=["a", "b"]).current_task_id == "b"
    assert found("llama_deploy.types:SessionDefinition")().current_task_id is None
    assert str(found("llama_deploy.types:ChatMessage").from_str("hi", "tool", additional_kwargs={"a": 1})) == "tool: hi"
    assert found("llama_deploy.types:CONTROL_PLANE_NAME") == "control_plane"
    assert found("llama_deploy.orchestrators.utils:get_result_key")("t") == "result_t"
    assert found("llama_deploy.orchestrators.utils:get_stream_key")("t") == "stream_t"


def test_addresses_are_put_together_as_published() -> None:
    config = found("llama_deploy:ControlPlaneConfig")
    assert config().url == "http://127.0.0.1:8000"
    assert config(host="h", port=None, use_tls=True).url == "https://h"
    service = found("llama_deploy:WorkflowServiceConfig")
    assert service(host="h", port=1, service_name="s").url == "http://h:1"
