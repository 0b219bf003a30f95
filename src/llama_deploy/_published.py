"""Where the names of the published `llama_deploy` live that the house does not use itself, as text.

One table for all of them: what a package of the house answers for when it is asked for a published name, and the parts
of the published client. Nothing is imported here, and nothing of `llama_deploy.deploy` is imported before a program
uses one of these names. Without this file and that package, everything else works as before.
"""

from collections.abc import Mapping

_CONFIG = "llama_deploy.deploy.config"
_CONSUMERS = "llama_deploy.deploy.parts.consumers"
_CONTROL_PLANE = "llama_deploy.deploy.parts.control_plane"
_PUBLISHERS = "llama_deploy.deploy.parts.publishers"
_QUEUES = "llama_deploy.deploy.parts.queues"
_SERVICES = "llama_deploy.deploy.parts.services"
_WORKFLOW_SERVICE = "llama_deploy.deploy.parts.workflow_service"
_SERVICE_AS_TOOL = "llama_deploy.deploy.parts.service_as_tool"
_TOOLS = "llama_deploy.deploy.parts.tools"
_SDK_CORE = "llama_deploy.deploy.sdk.core"
_SDK_SERVER = "llama_deploy.deploy.sdk.apiserver"
_STATE_KEYS = "llama_deploy.orchestrators.utils"

CLIENT_PARTS: Mapping[str, str] = {
    "apiserver": f"{_SDK_SERVER}:ApiServer",
    "core": f"{_SDK_CORE}:Core",
    "sync": "llama_deploy.deploy.sdk.blocking:Sync",
}
"""Attributes of `Client`: `module:class`, made with the client as its only argument."""

_BROKERS = ("AWS", "Kafka", "RabbitMQ", "Redis", "Solace")

HOMES: Mapping[str, Mapping[str, str]] = {
    "llama_deploy.client": {
        "AsyncLlamaDeployClient": "llama_deploy.deploy.async_client",
        "LlamaDeployClient": "llama_deploy.deploy.sync_client",
    },
    "llama_deploy.client.async_client": {
        "AsyncLlamaDeployClient": "llama_deploy.deploy.async_client",
        "AsyncSessionClient": "llama_deploy.deploy.async_client",
    },
    "llama_deploy.client.client": {"Client": "llama_deploy.client"},
    "llama_deploy.client.models": {"ApiServer": _SDK_SERVER, "Core": _SDK_CORE},
    "llama_deploy.client.models.apiserver": {
        "ApiServer": _SDK_SERVER,
        "Deployment": _SDK_SERVER,
        "DeploymentCollection": _SDK_SERVER,
        "SessionCollection": _SDK_SERVER,
        "Task": _SDK_SERVER,
        "TaskCollection": _SDK_SERVER,
    },
    "llama_deploy.client.models.core": {
        "Core": _SDK_CORE,
        "Service": _SDK_CORE,
        "ServiceCollection": _SDK_CORE,
        "Session": _SDK_CORE,
        "SessionCollection": _SDK_CORE,
    },
    "llama_deploy.client.sync_client": {
        "LlamaDeployClient": "llama_deploy.deploy.sync_client",
        "SessionClient": "llama_deploy.deploy.sync_client",
    },
    "llama_deploy.control_plane": {
        "BaseControlPlane": _CONTROL_PLANE,
        "ControlPlaneConfig": _CONFIG,
        "ControlPlaneServer": _CONTROL_PLANE,
    },
    "llama_deploy.control_plane.base": {"BaseControlPlane": _CONTROL_PLANE},
    "llama_deploy.control_plane.config": {"ControlPlaneConfig": _CONFIG},
    "llama_deploy.control_plane.server": {"ControlPlaneConfig": _CONFIG, "ControlPlaneServer": _CONTROL_PLANE},
    "llama_deploy.control_plane.utils": {"get_result_key": _STATE_KEYS, "get_stream_key": _STATE_KEYS},
    "llama_deploy.message_consumers": {
        "BaseMessageQueueConsumer": _CONSUMERS,
        "CallableMessageConsumer": _CONSUMERS,
        "RemoteMessageConsumer": _CONSUMERS,
    },
    "llama_deploy.message_consumers.base": {
        "BaseMessageQueueConsumer": _CONSUMERS,
        "StartConsumingCallable": _CONSUMERS,
    },
    "llama_deploy.message_consumers.callable": {"CallableMessageConsumer": _CONSUMERS},
    "llama_deploy.message_consumers.remote": {"RemoteMessageConsumer": _CONSUMERS},
    "llama_deploy.message_publishers": {"MessageQueuePublisherMixin": _PUBLISHERS, "PublishCallback": _PUBLISHERS},
    "llama_deploy.message_publishers.publisher": {
        "MessageQueuePublisherMixin": _PUBLISHERS,
        "PublishCallback": _PUBLISHERS,
    },
    "llama_deploy.message_queues": {
        "AbstractMessageQueue": _QUEUES,
        "BaseMessageQueue": _QUEUES,
        "SimpleMessageQueue": _QUEUES,
        "SimpleMessageQueueConfig": _CONFIG,
        "SimpleMessageQueueServer": _QUEUES,
        "SimpleRemoteClientMessageQueue": _QUEUES,
        **{f"{broker}MessageQueue": _QUEUES for broker in _BROKERS},
        **{f"{broker}MessageQueueConfig": _CONFIG for broker in _BROKERS},
    },
    "llama_deploy.message_queues.apache_kafka": {"KafkaMessageQueue": _QUEUES, "KafkaMessageQueueConfig": _CONFIG},
    "llama_deploy.message_queues.aws": {"AWSMessageQueue": _QUEUES, "AWSMessageQueueConfig": _CONFIG},
    "llama_deploy.message_queues.base": {"AbstractMessageQueue": _QUEUES, "BaseMessageQueue": _QUEUES},
    "llama_deploy.message_queues.rabbitmq": {"RabbitMQMessageQueue": _QUEUES, "RabbitMQMessageQueueConfig": _CONFIG},
    "llama_deploy.message_queues.redis": {"RedisMessageQueue": _QUEUES, "RedisMessageQueueConfig": _CONFIG},
    "llama_deploy.message_queues.simple": {
        "SimpleMessageQueue": _QUEUES,
        "SimpleMessageQueueConfig": _CONFIG,
        "SimpleMessageQueueServer": _QUEUES,
        "SimpleRemoteClientMessageQueue": _QUEUES,
    },
    "llama_deploy.message_queues.simple.client": {"SimpleMessageQueue": _QUEUES},
    "llama_deploy.message_queues.simple.config": {"SimpleMessageQueueConfig": _CONFIG},
    "llama_deploy.message_queues.simple.server": {"SimpleMessageQueueServer": _QUEUES},
    "llama_deploy.message_queues.solace": {"SolaceMessageQueue": _QUEUES, "SolaceMessageQueueConfig": _CONFIG},
    "llama_deploy.services": {
        "AgentService": _SERVICES,
        "ServiceAsTool": _SERVICE_AS_TOOL,
        "BaseService": _SERVICES,
        "ComponentService": _SERVICES,
        "HumanService": _SERVICES,
        "ToolService": _SERVICES,
        "WorkflowService": _WORKFLOW_SERVICE,
        "WorkflowServiceConfig": _CONFIG,
    },
    "llama_deploy.services.agent": {"AgentService": _SERVICES},
    "llama_deploy.services.base": {"BaseService": _SERVICES},
    "llama_deploy.services.component": {"ComponentService": _SERVICES},
    "llama_deploy.services.human": {"HumanService": _SERVICES},
    "llama_deploy.services.tool": {"ToolService": _SERVICES},
    "llama_deploy.services.workflow": {"WorkflowService": _WORKFLOW_SERVICE, "WorkflowServiceConfig": _CONFIG},
    "llama_deploy.tools": {
        "AgentServiceTool": _TOOLS,
        "MetaServiceTool": _TOOLS,
        "ServiceAsTool": _SERVICE_AS_TOOL,
        "ServiceComponent": _TOOLS,
        "ServiceTool": _TOOLS,
    },
    "llama_deploy.tools.agent_service_tool": {"AgentServiceTool": _TOOLS},
    "llama_deploy.tools.meta_service_tool": {"MetaServiceTool": _TOOLS},
    "llama_deploy.tools.service_as_tool": {"ServiceAsTool": _SERVICE_AS_TOOL},
    "llama_deploy.tools.service_component": {"ModuleType": _TOOLS, "ServiceComponent": _TOOLS},
    "llama_deploy.tools.service_tool": {"ServiceTool": _TOOLS},
    "llama_deploy.types": {"DeploymentDefinition": _SDK_SERVER, "Status": _SDK_SERVER, "StatusEnum": _SDK_SERVER},
    "llama_deploy.types.apiserver": {
        "DeploymentDefinition": _SDK_SERVER,
        "Status": _SDK_SERVER,
        "StatusEnum": _SDK_SERVER,
    },
}
"""By module and name: the module that has it. It comes before what the module itself has under the name.

So `from llama_deploy.services import WorkflowService` is a subclass of ours that takes the published arguments as well;
the house itself imports its own from the module that defines it.
"""
