"""The child processes of an API server: `control-plane` and `service`, each for one version of one deployment.

Started with `python -P -m`, by a supervisor that they do not outlive. A service process imports nothing of the control
plane, and runs on the Python of its own environment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from llama_deploy.errors import EXIT_CODE, LlamaDeployError
from llama_deploy.runtime.credentials import INSTANCE_TOKEN_VARIABLE
from llama_deploy.runtime.lifeline import RETIRE, die_with_supervisor, tell_ready
from llama_deploy.runtime.logs import configure
from llama_deploy.runtime.process import tune_collector

THREAD_STACK_BYTES = 1024 * 1024
RETIREMENT_S = 30 * 86_400.0
"""How long a process that retires may take by itself; its supervisor has its own mind about that."""


def main(arguments: list[str]) -> int:
    """Run one child; its exit code."""
    die_with_supervisor()
    configure("INFO")
    kind, *rest = arguments
    run = _KINDS[kind]
    tune_collector()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(*rest))
    except LlamaDeployError as error:
        sys.stderr.write(error.render() + "\n")
        return EXIT_CODE[error.category]
    except KeyboardInterrupt:
        return 130
    return 0


async def _control_plane(folder: str, descriptor: str, store: str) -> None:
    """The control plane of a deployment, on a socket that the API server keeps open."""
    from llama_deploy.apiserver.deployments.versions import open_version
    from llama_deploy.apiserver.served_access import OWN_TOKENS_VARIABLE, OwnTokens
    from llama_deploy.apiserver.serving import ServingOptions, serve_control_plane

    version = open_version(Path(folder))
    tokens = OwnTokens.parse(os.environ.pop(OWN_TOKENS_VARIABLE))
    options = ServingOptions(listener_descriptor=int(descriptor), store=store, on_ready=tell_ready, own_tokens=tokens)
    await serve_control_plane(version.file, options, _say)


async def _service(folder: str, name: str, *said: str) -> None:
    """One instance of a service, until it is told to end, or to retire."""
    control_plane_url, drain_timeout_s, memory_mb_max, release = said
    if int(memory_mb_max):
        _limit_memory(int(memory_mb_max) * 1024 * 1024)
    from llama_deploy.apiserver.deployments.versions import open_version
    from llama_deploy.apiserver.loader import load_service
    from llama_deploy.services import serve_services

    token = os.environ.pop(INSTANCE_TOKEN_VARIABLE)
    version = open_version(Path(folder))
    spec = version.service(name)
    os.environ.update(spec.environment(version.file.folder))
    service = load_service(spec, version.file.folder)
    leave: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()

    def retire() -> None:
        if not leave.done():
            leave.set_result(RETIREMENT_S)

    asyncio.get_running_loop().add_signal_handler(RETIRE, retire)
    await serve_services(
        [service],
        control_plane_url=control_plane_url,
        drain_timeout_s=float(drain_timeout_s),
        token=token,
        release=release,
        leave=leave,
        on_ready=tell_ready,
    )


async def _check(folder: str) -> None:
    """Whether the control plane of a version could start: its orchestrators are imported."""
    from llama_deploy.apiserver.deployments.versions import open_version
    from llama_deploy.apiserver.loader import load_orchestrator

    file = open_version(Path(folder)).file
    for spec in (file.orchestrator, *file.orchestrators.values()):
        load_orchestrator(spec, file.folder)


_KINDS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "control-plane": _control_plane,
    "service": _service,
    "check": _check,
}


def _limit_memory(bytes_max: int) -> None:
    """Let the kernel refuse memory beyond a limit: the code gets a `MemoryError`, and everybody else is left alone."""
    import resource
    import threading

    threading.stack_size(THREAD_STACK_BYTES)  # the system counts a stack whole, and its default is 8 MiB a thread
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_max, bytes_max))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    signal.signal(RETIRE, signal.SIG_IGN)  # until there is something to finish
    sys.exit(main(sys.argv[1:]))
