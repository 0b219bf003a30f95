"""One service of a deployment in a process of its own: a child of the supervisor, or started by hand elsewhere.

It imports nothing of the control plane, which is what keeps such a process small and quick to start.
"""

from __future__ import annotations

import os
from pathlib import Path

from llama_deploy.apiserver.loader import load_service
from llama_deploy.apiserver.ready_file import ReadyFile
from llama_deploy.apiserver.specs import ServiceSpec
from llama_deploy.runtime.credentials import Credentials
from llama_deploy.runtime.failpoints import arm_from_environment
from llama_deploy.services import serve_services


async def serve_service(
    spec: ServiceSpec,
    base_folder: Path,
    *,
    control_plane_url: str,
    drain_timeout_s: float,
    ready_file: ReadyFile,
    credentials: Credentials | None = None,
    release: str = "",
) -> None:
    """Serve one service of a deployment in this process until SIGTERM or SIGINT; it keeps trying to connect.

    Sets the service's environment variables in this process. When it is asked to end it finishes what it holds within
    `drain_timeout_s` seconds, and hands the rest back. `ready_file` is written when it is registered. Raises
    `ImportPathError` when its code does not load, and what the control plane refuses the credentials with.
    """
    arm_from_environment()
    os.environ.update(spec.environment(base_folder))
    service = load_service(spec, base_folder)
    with ready_file:
        await serve_services(
            [service],
            control_plane_url=control_plane_url,
            drain_timeout_s=drain_timeout_s,
            credentials=credentials,
            release=release,
            on_ready=lambda: ready_file.write(url=control_plane_url, service=spec.name),
        )
