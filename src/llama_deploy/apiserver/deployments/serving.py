"""Running an API server: its socket, its application, and the deployment files that it applies at the start."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from llama_deploy.apiserver.access_spec import AccessSpec
from llama_deploy.apiserver.addresses import local_url, url_of
from llama_deploy.apiserver.deployment_file import load_access_file
from llama_deploy.apiserver.deployments.options import RunningOptions
from llama_deploy.apiserver.deployments.server import DEPLOYMENTS_MAX, DeploymentServer
from llama_deploy.apiserver.deployments.versions import Offer
from llama_deploy.apiserver.ready_file import ReadyFile
from llama_deploy.apiserver.served_access import ServedAccess
from llama_deploy.apiserver.serving import on_signals
from llama_deploy.control_plane.http.listener import bind
from llama_deploy.errors import DeploymentFileError, LlamaDeployError

DEFAULT_PORT = 4501
DATA_FOLDER = Path(".llama_deploy") / "apiserver"

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """How an API server is run."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    data: Path = DATA_FOLDER
    """The folder of all that it keeps."""
    paths: tuple[Path, ...] = ()
    """Deployment files, and folders of them, that run from the start."""
    host_names: tuple[str, ...] = ()
    """Further names that it goes by."""
    access_file: Path | None = None
    """Who is let in: what stands under `access` in a deployment file, in a file of its own."""
    allow_remote: bool = False
    deployments_max: int = DEPLOYMENTS_MAX
    running: RunningOptions = field(default_factory=RunningOptions)
    ready_file: Path | None = None


async def serve_api(options: ServerOptions, report: Report) -> None:
    """Run an API server until SIGTERM or SIGINT; a second one ends everything without waiting.

    Whatever ends this process ends its deployments' processes too; the next start runs them again.
    """
    files = list(_files(options.paths))
    ready_file = ReadyFile(options.ready_file, report)
    access = _access(options, report)
    running = replace(options.running, hidden=access.hidden)
    server = DeploymentServer(options.data, options=running, deployments_max=options.deployments_max)
    with contextlib.ExitStack() as stack:
        stack.callback(access.close)
        listener = stack.enter_context(
            bind(options.host, options.port, allow_remote=options.allow_remote or access.asks_for_tokens)
        )
        url = url_of(options.host, listener.getsockname()[1], tls=access.tls is not None)
        stop, hurried = asyncio.Event(), False

        def signaled() -> None:
            nonlocal hurried
            if stop.is_set():
                hurried = True
                server.kill()
            else:
                report("stopping; once more to stop at once")
                stop.set()

        with on_signals(signaled), access.reloading():
            async with server, _listening(server, listener, access):
                report(f"API server at {url}, data in {server.data}")
                access.tell()
                applying = asyncio.create_task(_apply(server, files, report))
                with ready_file:
                    ready_file.write(url=local_url(url), data=str(server.data))
                    await stop.wait()
                applying.cancel()
                await asyncio.gather(applying, return_exceptions=True)
        if hurried:
            raise KeyboardInterrupt


@contextlib.asynccontextmanager
async def _listening(server: DeploymentServer, listener: socket.socket, access: ServedAccess) -> AsyncIterator[None]:
    """Serve the application for as long as the block runs; its imports take a while, so deployments start meanwhile."""
    from llama_deploy.apiserver.deployments.http.app import build_app
    from llama_deploy.apiserver.deployments.http.scopes import SCOPES
    from llama_deploy.control_plane.http.server import serving_app

    app = build_app(server)
    closing = app.state.closing
    async with serving_app(app, listener, closing=closing, access=access.access, tls=access.tls, scopes=SCOPES):
        yield
    await app.state.proxy.close()


def _access(options: ServerOptions, report: Report) -> ServedAccess:
    """Who is let in, by the file and by what was said beside it."""

    def read() -> AccessSpec:
        spec = load_access_file(options.access_file) if options.access_file is not None else AccessSpec()
        return replace(spec, hosts=(*spec.hosts, *options.host_names))

    folder = options.access_file.parent if options.access_file is not None else options.data
    return ServedAccess(
        read(), folder, "apiserver", host=options.host, allow_remote=options.allow_remote, report=report, read=read
    )


async def _apply(server: DeploymentServer, files: Iterable[Path], report: Report) -> None:
    """Run what deployment files say; one that does not start keeps no other one from it."""
    for file in files:
        try:
            offer = Offer(source=await asyncio.to_thread(file.read_bytes), file_name=file.name, folder=file.parent)
            name, changed = await server.deploy(offer, replace=True)
        except LlamaDeployError as error:
            report(f"{file}: not deployed\n{error.render()}")
        except OSError as error:
            report(f"{file}: not deployed\n{error}")
        else:
            report(f"{name}: {'ready' if changed else 'unchanged'}")


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    """The deployment files that are meant. Raises `DeploymentFileError` where there is none."""
    for path in paths:
        if path.is_dir():
            found = sorted(one for one in path.iterdir() if one.suffix in {".yml", ".yaml"})
            if not found:
                raise DeploymentFileError(f"there is no deployment file in {path}", problems=[])
            yield from found
        elif path.is_file():
            yield path
        else:
            raise DeploymentFileError(f"there is no deployment file at {path}", problems=[])
