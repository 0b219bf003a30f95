"""Every import path of the published system that is kept, and every name that programs take from there."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from llama_deploy import services
from llama_deploy._published import CLIENT_PARTS, HOMES

PUBLISHED = {
    "llama_deploy": """AgentService AgentServiceTool AsyncLlamaDeployClient BaseOrchestrator CallableMessageConsumer
        Client ComponentService ControlPlaneConfig ControlPlaneServer HumanService LlamaDeployClient MetaServiceTool
        QueueMessage ServiceAsTool ServiceComponent ServiceTool SimpleMessageQueue SimpleMessageQueueConfig
        SimpleMessageQueueServer SimpleOrchestrator SimpleOrchestratorConfig ToolService WorkflowService
        WorkflowServiceConfig deploy_core deploy_workflow""",
    "llama_deploy.client": "AsyncLlamaDeployClient Client LlamaDeployClient",
    "llama_deploy.client.async_client": "AsyncLlamaDeployClient AsyncSessionClient",
    "llama_deploy.client.sync_client": "LlamaDeployClient SessionClient",
    "llama_deploy.client.client": "Client",
    "llama_deploy.client.models": "ApiServer Core",
    "llama_deploy.client.models.apiserver": """ApiServer Deployment DeploymentCollection SessionCollection Task
        TaskCollection""",
    "llama_deploy.client.models.core": "Core Service ServiceCollection Session SessionCollection",
    "llama_deploy.control_plane": "BaseControlPlane ControlPlaneConfig ControlPlaneServer",
    "llama_deploy.control_plane.base": "BaseControlPlane",
    "llama_deploy.control_plane.config": "ControlPlaneConfig",
    "llama_deploy.control_plane.server": "ControlPlaneConfig ControlPlaneServer",
    "llama_deploy.control_plane.utils": "get_result_key get_stream_key",
    "llama_deploy.deploy": "deploy_core deploy_workflow",
    "llama_deploy.deploy.deploy": "deploy_core deploy_workflow",
    "llama_deploy.message_consumers": "BaseMessageQueueConsumer CallableMessageConsumer",
    "llama_deploy.message_consumers.base": "BaseMessageQueueConsumer StartConsumingCallable",
    "llama_deploy.message_consumers.callable": "CallableMessageConsumer",
    "llama_deploy.message_consumers.remote": "RemoteMessageConsumer",
    "llama_deploy.message_publishers": "MessageQueuePublisherMixin PublishCallback",
    "llama_deploy.message_publishers.publisher": "MessageQueuePublisherMixin PublishCallback",
    "llama_deploy.message_queues": """AWSMessageQueue AWSMessageQueueConfig BaseMessageQueue AbstractMessageQueue
        KafkaMessageQueue KafkaMessageQueueConfig RabbitMQMessageQueue RabbitMQMessageQueueConfig RedisMessageQueue
        RedisMessageQueueConfig SimpleMessageQueue SimpleMessageQueueConfig SimpleMessageQueueServer
        SimpleRemoteClientMessageQueue SolaceMessageQueue SolaceMessageQueueConfig""",
    "llama_deploy.message_queues.apache_kafka": "KafkaMessageQueue KafkaMessageQueueConfig",
    "llama_deploy.message_queues.aws": "AWSMessageQueue AWSMessageQueueConfig",
    "llama_deploy.message_queues.base": "BaseMessageQueue",
    "llama_deploy.message_queues.rabbitmq": "RabbitMQMessageQueue RabbitMQMessageQueueConfig",
    "llama_deploy.message_queues.redis": "RedisMessageQueue RedisMessageQueueConfig",
    "llama_deploy.message_queues.simple": """SimpleMessageQueue SimpleMessageQueueConfig SimpleMessageQueueServer
        SimpleRemoteClientMessageQueue""",
    "llama_deploy.message_queues.simple.client": "SimpleMessageQueue",
    "llama_deploy.message_queues.simple.config": "SimpleMessageQueueConfig",
    "llama_deploy.message_queues.simple.server": "SimpleMessageQueueServer",
    "llama_deploy.message_queues.solace": "SolaceMessageQueue SolaceMessageQueueConfig",
    "llama_deploy.messages": "QueueMessage",
    "llama_deploy.messages.base": "QueueMessage QueueMessageStats",
    "llama_deploy.orchestrators": "BaseOrchestrator SimpleOrchestrator SimpleOrchestratorConfig",
    "llama_deploy.orchestrators.base": "BaseOrchestrator",
    "llama_deploy.orchestrators.simple": "SimpleOrchestrator SimpleOrchestratorConfig get_result_key",
    "llama_deploy.orchestrators.utils": "get_result_key get_stream_key",
    "llama_deploy.services": """AgentService BaseService ComponentService HumanService ToolService WorkflowService
        WorkflowServiceConfig""",
    "llama_deploy.services.agent": "AgentService",
    "llama_deploy.services.base": "BaseService",
    "llama_deploy.services.component": "ComponentService",
    "llama_deploy.services.human": "HumanService",
    "llama_deploy.services.tool": "ToolService",
    "llama_deploy.services.workflow": "WorkflowService WorkflowServiceConfig",
    "llama_deploy.tools": "AgentServiceTool MetaServiceTool ServiceAsTool ServiceComponent ServiceTool",
    "llama_deploy.tools.agent_service_tool": "AgentServiceTool",
    "llama_deploy.tools.meta_service_tool": "MetaServiceTool",
    "llama_deploy.tools.service_as_tool": "ServiceAsTool",
    "llama_deploy.tools.service_component": "ModuleType ServiceComponent",
    "llama_deploy.tools.service_tool": "ServiceTool",
    "llama_deploy.types": """ActionTypes ChatMessage DeploymentDefinition EventDefinition HumanResponse NewTask
        ServiceDefinition SessionDefinition Status StatusEnum TaskDefinition TaskResult TaskStream ToolCall
        ToolCallBundle ToolCallResult generate_id""",
    "llama_deploy.types.apiserver": "DeploymentDefinition Status StatusEnum",
    "llama_deploy.types.core": "ActionTypes TaskDefinition TaskResult generate_id",
    "llama_deploy.apiserver": "",
    "llama_deploy.cli": "",
}


@pytest.mark.parametrize("module", PUBLISHED)
def test_names_are_where_programs_take_them_from(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in PUBLISHED[module].split() if not hasattr(found, name)] == []


def test_each_entry_of_the_table_leads_somewhere_and_is_listed() -> None:
    for module, homes in HOMES.items():
        asked = importlib.import_module(module)
        for name, home in homes.items():
            assert getattr(asked, name) is getattr(importlib.import_module(home), name)
            assert name in dir(asked)
    for place in CLIENT_PARTS.values():
        module, _, name = place.partition(":")
        assert getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", ["HumanService", "ToolService", "WorkflowService"])
def test_what_takes_both_kinds_of_arguments_is_one_of_ours_wherever_it_is_taken_from(name: str) -> None:
    module = importlib.import_module(f"llama_deploy.services.{name.removesuffix('Service').lower()}")
    published = getattr(services, name)
    assert issubclass(published, getattr(module, f"Plain{name}"))
    assert getattr(module, name) is published
    assert getattr(importlib.import_module("llama_deploy"), name) is published


def test_the_simple_queue_is_one_wherever_it_is_taken_from() -> None:
    modules = ("llama_deploy", "llama_deploy.message_queues", "llama_deploy.message_queues.simple")
    found = {importlib.import_module(module).SimpleMessageQueue for module in modules}
    assert len(found) == 1
    assert issubclass(found.pop(), importlib.import_module(modules[-1]).InProcessQueue)


def test_the_house_takes_its_own_from_where_they_are_defined() -> None:
    """From a package it would be given the one that takes published arguments as well."""
    source = Path(__file__).resolve().parents[2] / "src" / "llama_deploy"
    taken = {
        f"{path.relative_to(source)}: {alias.name}"
        for path in source.rglob("*.py")
        if path.relative_to(source).parts[0] != "deploy" and path.parent != source
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in HOMES.get(str(node.module), {})
    }
    assert taken == set()


def test_every_name_is_there_without_llama_index() -> None:
    program = """
import sys
sys.modules["llama_index"] = None
from llama_deploy import *
from llama_deploy.errors import MissingExtraError
from llama_deploy.types import ServiceDefinition
try:
    ServiceTool("a", "b")
except MissingExtraError as error:
    print(error.fix)
try:
    ServiceAsTool.from_service_definition(SimpleMessageQueue(), ServiceDefinition(service_name="a", description="b"))
except MissingExtraError as error:
    print(error.fix)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["pip install llama-index-core; or give the agent a ServiceAsTool"] * 2


def test_the_house_never_loads_it() -> None:
    program = """
import sys, asyncio
from llama_deploy import Deployment, service
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
class Echo(Workflow):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.text)
async def main():
    async with Deployment([Echo()], store=":memory:", port=0, quiet=True) as d:
        assert await d.run("Echo", text="a") == "a"
asyncio.run(main())
print([name for name in sys.modules if name.startswith("llama_deploy.deploy")])
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
