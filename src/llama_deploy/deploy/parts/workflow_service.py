"""The published service of a workflow, put together by hand; apart from the others, since it imports the engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, overload

from workflows import Workflow

from llama_deploy.deploy import nested
from llama_deploy.deploy.config import WorkflowServiceConfig
from llama_deploy.deploy.parts.queues import BaseMessageQueue
from llama_deploy.deploy.parts.services import BaseService
from llama_deploy.services.workflow import PlainWorkflowService
from llama_deploy.types import RetryPolicy

nested.install()  # here and not in a function: programs build their workflows before they make services of them


class WorkflowService(BaseService, PlainWorkflowService):
    """A workflow, served: as `llama_deploy.services.WorkflowService`, or put together by hand."""

    @overload
    def __init__(
        self,
        workflow: Workflow | type[Workflow] | Callable[[], Workflow],
        *,
        name: str | None = None,
        description: str | None = None,
        concurrency: int = 8,
        run_timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        memory: Literal["none", "session", "task"] = "none",
        allowed_types: Collection[type[Any]] = (),
        nested: Mapping[str, str] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        workflow: Any,
        message_queue: BaseMessageQueue,
        config: WorkflowServiceConfig | None = None,
        publish_callback: Any = None,
        **settings: Any,
    ) -> None: ...

    def __init__(
        self,
        workflow: Any,
        message_queue: Any = None,
        config: WorkflowServiceConfig | None = None,
        publish_callback: Any = None,
        **settings: Any,
    ) -> None:
        """With a `message_queue`, by hand: `config`, or its fields by name."""
        if message_queue is None:
            PlainWorkflowService.__init__(self, workflow, **settings)
            return
        del publish_callback
        if config is not None:
            settings = {**config.model_dump(), **settings}
        PlainWorkflowService.__init__(
            self,
            workflow,
            name=settings.pop("service_name", "default_workflow_service"),
            description=settings.pop("description", "A service that wraps a llama-index workflow."),
            concurrency=settings.pop("max_concurrent_tasks", 8),
            memory="session",
        )
        self._put_together(message_queue, settings)
