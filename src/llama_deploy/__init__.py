"""llama_deploy: tasks, the services that do them, and a control plane that loses nothing.

The names below are the public surface. Each is imported when it is first used, so that `import llama_deploy` costs
next to nothing; the table says where each one lives.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names
from llama_deploy._version import __version__

if TYPE_CHECKING:
    from llama_deploy.apiserver import Deployment
    from llama_deploy.client import Client, SyncClient
    from llama_deploy.errors import LlamaDeployError, NonRetryableError, TaskFailed
    from llama_deploy.messages import QueueMessage
    from llama_deploy.orchestrators import (
        BaseOrchestrator,
        SimpleOrchestrator,
        SimpleOrchestratorConfig,
        get_result_key,
        get_stream_key,
    )
    from llama_deploy.services import (
        FunctionService,
        HumanService,
        ServiceContext,
        ToolService,
        WorkflowService,
        current_step,
        serve_services,
        service,
    )
    from llama_deploy.types import (
        ActionTypes,
        Artifact,
        ChatMessage,
        EventDefinition,
        File,
        MessageRole,
        NewTask,
        RateLimit,
        RetryPolicy,
        ServiceDefinition,
        ServiceLimits,
        SessionDefinition,
        TaskDefinition,
        TaskError,
        TaskResult,
        TaskState,
        TaskStream,
        TaskView,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ActionTypes": "llama_deploy.types",
            "Artifact": "llama_deploy.types",
            "BaseOrchestrator": "llama_deploy.orchestrators",
            "ChatMessage": "llama_deploy.types",
            "Client": "llama_deploy.client",
            "Deployment": "llama_deploy.apiserver",
            "EventDefinition": "llama_deploy.types",
            "File": "llama_deploy.types",
            "FunctionService": "llama_deploy.services",
            "HumanService": "llama_deploy.services",
            "LlamaDeployError": "llama_deploy.errors",
            "MessageRole": "llama_deploy.types",
            "NewTask": "llama_deploy.types",
            "NonRetryableError": "llama_deploy.errors",
            "QueueMessage": "llama_deploy.messages",
            "RateLimit": "llama_deploy.types",
            "RetryPolicy": "llama_deploy.types",
            "ServiceContext": "llama_deploy.services",
            "ServiceDefinition": "llama_deploy.types",
            "ServiceLimits": "llama_deploy.types",
            "SessionDefinition": "llama_deploy.types",
            "SimpleOrchestrator": "llama_deploy.orchestrators",
            "SimpleOrchestratorConfig": "llama_deploy.orchestrators",
            "SyncClient": "llama_deploy.client",
            "TaskDefinition": "llama_deploy.types",
            "TaskError": "llama_deploy.types",
            "TaskFailed": "llama_deploy.errors",
            "TaskResult": "llama_deploy.types",
            "TaskState": "llama_deploy.types",
            "TaskStream": "llama_deploy.types",
            "TaskView": "llama_deploy.types",
            "ToolService": "llama_deploy.services",
            "WorkflowService": "llama_deploy.services",
            "current_step": "llama_deploy.services",
            "get_result_key": "llama_deploy.orchestrators",
            "get_stream_key": "llama_deploy.orchestrators",
            "serve_services": "llama_deploy.services",
            "service": "llama_deploy.services",
        },
    )

__all__ = [
    "ActionTypes",
    "Artifact",
    "BaseOrchestrator",
    "ChatMessage",
    "Client",
    "Deployment",
    "EventDefinition",
    "File",
    "FunctionService",
    "HumanService",
    "LlamaDeployError",
    "MessageRole",
    "NewTask",
    "NonRetryableError",
    "QueueMessage",
    "RateLimit",
    "RetryPolicy",
    "ServiceContext",
    "ServiceDefinition",
    "ServiceLimits",
    "SessionDefinition",
    "SimpleOrchestrator",
    "SimpleOrchestratorConfig",
    "SyncClient",
    "TaskDefinition",
    "TaskError",
    "TaskFailed",
    "TaskResult",
    "TaskState",
    "TaskStream",
    "TaskView",
    "ToolService",
    "WorkflowService",
    "__version__",
    "current_step",
    "get_result_key",
    "get_stream_key",
    "serve_services",
    "service",
]
