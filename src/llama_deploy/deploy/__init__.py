"""The published helpers, parts and clients under their old names: thin, over what the rest of the package does.

Nothing inside imports this package, so that it can be deleted in one go, with `llama_deploy._published`, which says
where old import paths lead. New programs use `Deployment`, `serve_services` and `Client`;
docs/guide/coming-from-llama-deploy.md says what is deliberately different.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names

if TYPE_CHECKING:
    from llama_deploy.deploy.async_client import AsyncLlamaDeployClient, AsyncSessionClient
    from llama_deploy.deploy.config import (
        AWSMessageQueueConfig,
        ControlPlaneConfig,
        KafkaMessageQueueConfig,
        RabbitMQMessageQueueConfig,
        RedisMessageQueueConfig,
        SimpleMessageQueueConfig,
        SolaceMessageQueueConfig,
        WorkflowServiceConfig,
    )
    from llama_deploy.deploy.parts.consumers import CallableMessageConsumer, RemoteMessageConsumer
    from llama_deploy.deploy.parts.control_plane import ControlPlaneServer
    from llama_deploy.deploy.parts.queues import (
        AWSMessageQueue,
        KafkaMessageQueue,
        RabbitMQMessageQueue,
        RedisMessageQueue,
        SimpleMessageQueue,
        SimpleMessageQueueServer,
        SolaceMessageQueue,
    )
    from llama_deploy.deploy.parts.service_as_tool import ServiceAsTool
    from llama_deploy.deploy.parts.services import (
        AgentService,
        BaseService,
        ComponentService,
        HumanService,
        ToolService,
    )
    from llama_deploy.deploy.parts.tools import AgentServiceTool, MetaServiceTool, ServiceComponent, ServiceTool
    from llama_deploy.deploy.parts.workflow_service import WorkflowService
    from llama_deploy.deploy.running import deploy_core, deploy_workflow
    from llama_deploy.deploy.sync_client import LlamaDeployClient, SessionClient
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "AWSMessageQueue": "llama_deploy.deploy.parts.queues",
            "AWSMessageQueueConfig": "llama_deploy.deploy.config",
            "AgentService": "llama_deploy.deploy.parts.services",
            "AgentServiceTool": "llama_deploy.deploy.parts.tools",
            "AsyncLlamaDeployClient": "llama_deploy.deploy.async_client",
            "AsyncSessionClient": "llama_deploy.deploy.async_client",
            "BaseService": "llama_deploy.deploy.parts.services",
            "CallableMessageConsumer": "llama_deploy.deploy.parts.consumers",
            "ComponentService": "llama_deploy.deploy.parts.services",
            "ControlPlaneConfig": "llama_deploy.deploy.config",
            "ControlPlaneServer": "llama_deploy.deploy.parts.control_plane",
            "HumanService": "llama_deploy.deploy.parts.services",
            "KafkaMessageQueue": "llama_deploy.deploy.parts.queues",
            "KafkaMessageQueueConfig": "llama_deploy.deploy.config",
            "LlamaDeployClient": "llama_deploy.deploy.sync_client",
            "MetaServiceTool": "llama_deploy.deploy.parts.tools",
            "RabbitMQMessageQueue": "llama_deploy.deploy.parts.queues",
            "RabbitMQMessageQueueConfig": "llama_deploy.deploy.config",
            "RedisMessageQueue": "llama_deploy.deploy.parts.queues",
            "RedisMessageQueueConfig": "llama_deploy.deploy.config",
            "RemoteMessageConsumer": "llama_deploy.deploy.parts.consumers",
            "ServiceAsTool": "llama_deploy.deploy.parts.service_as_tool",
            "ServiceComponent": "llama_deploy.deploy.parts.tools",
            "ServiceTool": "llama_deploy.deploy.parts.tools",
            "SessionClient": "llama_deploy.deploy.sync_client",
            "SimpleMessageQueue": "llama_deploy.deploy.parts.queues",
            "SimpleMessageQueueConfig": "llama_deploy.deploy.config",
            "SimpleMessageQueueServer": "llama_deploy.deploy.parts.queues",
            "SolaceMessageQueue": "llama_deploy.deploy.parts.queues",
            "SolaceMessageQueueConfig": "llama_deploy.deploy.config",
            "ToolService": "llama_deploy.deploy.parts.services",
            "WorkflowService": "llama_deploy.deploy.parts.workflow_service",
            "WorkflowServiceConfig": "llama_deploy.deploy.config",
            "deploy_core": "llama_deploy.deploy.running",
            "deploy_workflow": "llama_deploy.deploy.running",
        },
    )

__all__ = [
    "AWSMessageQueue",
    "AWSMessageQueueConfig",
    "AgentService",
    "AgentServiceTool",
    "AsyncLlamaDeployClient",
    "AsyncSessionClient",
    "BaseService",
    "CallableMessageConsumer",
    "ComponentService",
    "ControlPlaneConfig",
    "ControlPlaneServer",
    "HumanService",
    "KafkaMessageQueue",
    "KafkaMessageQueueConfig",
    "LlamaDeployClient",
    "MetaServiceTool",
    "RabbitMQMessageQueue",
    "RabbitMQMessageQueueConfig",
    "RedisMessageQueue",
    "RedisMessageQueueConfig",
    "RemoteMessageConsumer",
    "ServiceAsTool",
    "ServiceComponent",
    "ServiceTool",
    "SessionClient",
    "SimpleMessageQueue",
    "SimpleMessageQueueConfig",
    "SimpleMessageQueueServer",
    "SolaceMessageQueue",
    "SolaceMessageQueueConfig",
    "ToolService",
    "WorkflowService",
    "WorkflowServiceConfig",
    "deploy_core",
    "deploy_workflow",
]
