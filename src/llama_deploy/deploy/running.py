"""`deploy_core` and `deploy_workflow`: a `Deployment` without services, and a workflow that is served beside it.

Both run until they are canceled, as in a script that makes tasks of them; nothing else is decided here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_deploy.deploy import nested
from llama_deploy.deploy.config import ControlPlaneConfig, SimpleMessageQueueConfig, WorkflowServiceConfig
from llama_deploy.deploy.cores import deployment_of
from llama_deploy.errors import SettingError
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator, SimpleOrchestratorConfig
from llama_deploy.runtime.installed import warn_of_two_distributions
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.link import serve_services
from llama_deploy.services.workflow import PlainWorkflowService

nested.install()  # here and not in a function: programs build their workflows before they call anything

log = get_logger("llama_deploy.deploy")

DRAIN_TIMEOUT_S = 10.0
"""How long a canceled `deploy_workflow` finishes what it holds; the rest is handed back."""


async def deploy_core(
    control_plane_config: ControlPlaneConfig | None = None,
    message_queue_config: Any = None,
    orchestrator_config: SimpleOrchestratorConfig | BaseOrchestrator | None = None,
    disable_message_queue: bool = False,  # noqa: FBT001, FBT002 - the published signature
    disable_control_plane: bool = False,  # noqa: FBT001, FBT002 - the published signature
) -> None:
    """Run a control plane until this is canceled; what it has recorded is there for the next one.

    `orchestrator_config` is a configuration of the simple orchestrator, or any orchestrator. Messages are carried
    within the control plane: the message queue that is configured is not connected to, and a core without a control
    plane does nothing but wait. Who is let in is said by `access_file` of `control_plane_config`; with tokens there,
    services and clients show the one in `LLAMA_DEPLOY_TOKEN`.

    Raises `PortInUseError`, `UnsafeListenError`, `SettingError`, `StoreLockedError`.
    """
    warn_of_two_distributions()
    config = control_plane_config or ControlPlaneConfig()
    if message_queue_config is not None and not isinstance(message_queue_config, SimpleMessageQueueConfig):
        log.warning("the message queue is not used", config=type(message_queue_config).__name__)
    if disable_control_plane:
        log.warning("nothing runs here: messages are carried within the control plane", disabled=disable_message_queue)
        await asyncio.Event().wait()
    async with deployment_of(config, _orchestrator(orchestrator_config)):
        await asyncio.Event().wait()


async def deploy_workflow(
    workflow: Any, workflow_config: WorkflowServiceConfig, control_plane_config: ControlPlaneConfig | None = None
) -> None:
    """Serve a workflow under its configured name until this is canceled, connected to the control plane.

    Starts in any order with `deploy_core`: it connects when there is something to connect to, and again whenever the
    connection was lost. What the workflow leaves in its context is there for the next task of the session.
    """
    warn_of_two_distributions()
    config = control_plane_config or ControlPlaneConfig()
    service = PlainWorkflowService(
        workflow,
        name=workflow_config.service_name,
        description=workflow_config.description,
        concurrency=workflow_config.max_concurrent_tasks,
        memory="session",
    )
    stop = asyncio.Event()
    serving = asyncio.ensure_future(
        serve_services(
            [service],
            control_plane_url=config.url,
            drain_timeout_s=DRAIN_TIMEOUT_S,
            stop=stop,
            handle_signals=False,
        )
    )
    try:
        await asyncio.shield(serving)
    finally:
        stop.set()
        await serving


def _orchestrator(config: SimpleOrchestratorConfig | BaseOrchestrator | None) -> BaseOrchestrator:
    if config is None:
        config = SimpleOrchestratorConfig()
    if isinstance(config, BaseOrchestrator):
        return config
    if isinstance(config, SimpleOrchestratorConfig):
        return SimpleOrchestrator(max_retries=config.max_retries, final_message_type=config.final_message_type)
    raise SettingError(
        f"{type(config).__qualname__} configures no orchestrator",
        fix="give a SimpleOrchestratorConfig, or any BaseOrchestrator",
    )
