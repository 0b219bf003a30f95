"""What things are: the published models, task states, the retry policy, and the views of the API.

Data only, no I/O. The models of history and API are imported when they are first used, and every model's validator is
built when it is first used, so that importing this package costs little more than importing pydantic.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names
from llama_deploy.types.core import (
    CONTROL_PLANE_NAME,
    ActionTypes,
    ChatMessage,
    EventDefinition,
    HumanResponse,
    MessageRole,
    NewTask,
    ServiceDefinition,
    SessionDefinition,
    TaskDefinition,
    TaskError,
    TaskResult,
    TaskStream,
    ToolCall,
    ToolCallBundle,
    ToolCallResult,
    generate_id,
)
from llama_deploy.types.limits import RateLimit, ServiceLimits
from llama_deploy.types.options import Origin, StepOptions, TaskOptions, Webhook
from llama_deploy.types.retry import RetryPolicy
from llama_deploy.types.state import FINAL_STATES, LEGAL_TRANSITIONS, TaskState, check_transition

if TYPE_CHECKING:
    from llama_deploy.types.api import (
        InstanceView,
        ServicePage,
        ServiceView,
        SessionPage,
        SessionView,
        TaskPage,
        TaskResultView,
        TaskView,
    )
    from llama_deploy.types.artifacts import Artifact, File
    from llama_deploy.types.erasure import ErasurePage, ErasureView
    from llama_deploy.types.history import HistoryEntry, HistoryPage
    from llama_deploy.types.ledgers import LedgerPage
    from llama_deploy.types.planes import MissingPlane
    from llama_deploy.types.queues import LimitsView, PauseView, QueuePage, QueueView, WaitingPage, WaitingStep
    from llama_deploy.types.releases import ReleasesView, ReleaseView
    from llama_deploy.types.webhooks import WebhookSettings, WebhookView
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ErasurePage": "llama_deploy.types.erasure",
            "ErasureView": "llama_deploy.types.erasure",
            "Artifact": "llama_deploy.types.artifacts",
            "File": "llama_deploy.types.artifacts",
            "HistoryEntry": "llama_deploy.types.history",
            "HistoryPage": "llama_deploy.types.history",
            "LedgerPage": "llama_deploy.types.ledgers",
            "InstanceView": "llama_deploy.types.api",
            "LimitsView": "llama_deploy.types.queues",
            "MissingPlane": "llama_deploy.types.planes",
            "PauseView": "llama_deploy.types.queues",
            "QueuePage": "llama_deploy.types.queues",
            "QueueView": "llama_deploy.types.queues",
            "ReleaseView": "llama_deploy.types.releases",
            "ReleasesView": "llama_deploy.types.releases",
            "ServicePage": "llama_deploy.types.api",
            "ServiceView": "llama_deploy.types.api",
            "SessionPage": "llama_deploy.types.api",
            "SessionView": "llama_deploy.types.api",
            "TaskPage": "llama_deploy.types.api",
            "TaskResultView": "llama_deploy.types.api",
            "TaskView": "llama_deploy.types.api",
            "WaitingPage": "llama_deploy.types.queues",
            "WaitingStep": "llama_deploy.types.queues",
            "WebhookSettings": "llama_deploy.types.webhooks",
            "WebhookView": "llama_deploy.types.webhooks",
        },
    )

__all__ = [
    "CONTROL_PLANE_NAME",
    "FINAL_STATES",
    "LEGAL_TRANSITIONS",
    "ActionTypes",
    "Artifact",
    "ChatMessage",
    "ErasurePage",
    "ErasureView",
    "EventDefinition",
    "File",
    "HistoryEntry",
    "HistoryPage",
    "HumanResponse",
    "InstanceView",
    "LedgerPage",
    "LimitsView",
    "MessageRole",
    "MissingPlane",
    "NewTask",
    "Origin",
    "PauseView",
    "QueuePage",
    "QueueView",
    "RateLimit",
    "ReleaseView",
    "ReleasesView",
    "RetryPolicy",
    "ServiceDefinition",
    "ServiceLimits",
    "ServicePage",
    "ServiceView",
    "SessionDefinition",
    "SessionPage",
    "SessionView",
    "StepOptions",
    "TaskDefinition",
    "TaskError",
    "TaskOptions",
    "TaskPage",
    "TaskResult",
    "TaskResultView",
    "TaskState",
    "TaskStream",
    "TaskView",
    "ToolCall",
    "ToolCallBundle",
    "ToolCallResult",
    "WaitingPage",
    "WaitingStep",
    "Webhook",
    "WebhookSettings",
    "WebhookView",
    "check_transition",
    "generate_id",
]
