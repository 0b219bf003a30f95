"""The `Deployment` that a published configuration of a control plane means, for all that take one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_deploy.apiserver import Deployment
from llama_deploy.apiserver.access_spec import AccessSpec
from llama_deploy.apiserver.deployment_file import load_access_file
from llama_deploy.deploy.config import ControlPlaneConfig
from llama_deploy.message_queues.base import MessageQueue
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types.access import AccessSettings

log = get_logger("llama_deploy.deploy")

DEFAULT_PORT = 8000


def deployment_of(
    config: ControlPlaneConfig, orchestrator: BaseOrchestrator, *, message_queue: Any = None, listening: bool = True
) -> Deployment:
    """What runs for a configuration. Raises `DeploymentFileError` and `SettingError` for its file of who is let in."""
    host, port = address_of(config)
    return Deployment(
        name=config.topic_namespace,
        store=config.state_store_uri,
        message_queue=message_queue if isinstance(message_queue, MessageQueue) else None,
        orchestrator=orchestrator,
        host=host,
        port=port if listening else None,
        allow_remote=config.allow_remote,
        access=_access_of(config),
    )


def address_of(config: ControlPlaneConfig) -> tuple[str, int]:
    """Where it listens: the internal address where there is one, as behind a proxy."""
    port = next((port for port in (config.internal_port, config.port) if port is not None), DEFAULT_PORT)
    return config.internal_host or config.host, port


def _access_of(config: ControlPlaneConfig) -> AccessSettings:
    """Who is let in: what the file says that is named, and the origins that are listed."""
    spec, folder = AccessSpec(), Path()
    if config.access_file is not None:
        spec, folder = load_access_file(config.access_file), Path(config.access_file).parent
    origins = [origin.lower().rstrip("/") for origin in config.cors_origins or ()]
    if "*" in origins:
        log.warning("any origin is none: list those whose pages may use the control plane", cors_origins="*")
        origins.remove("*")
    return replace(spec, cors_origins=(*spec.cors_origins, *origins)).settings(folder, config.topic_namespace)
