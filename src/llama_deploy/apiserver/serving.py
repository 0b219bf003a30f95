"""Running what a deployment file describes: all of it, or its control plane alone.

All of it means the control plane in this process and every service in child processes of its own. What the parts do
is theirs; here they are put together, stopped in the right order, and said to be ready. In development the code is
watched as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from llama_deploy.apiserver.access_spec import AccessSpec
from llama_deploy.apiserver.addresses import local_url, reached_at, url_of
from llama_deploy.apiserver.checking import why_not
from llama_deploy.apiserver.deployment_file import load_deployment_file
from llama_deploy.apiserver.loader import check_no_images, load_orchestrator
from llama_deploy.apiserver.local_instance import own_services
from llama_deploy.apiserver.queues import open_queue, relocated
from llama_deploy.apiserver.ready_file import ReadyFile
from llama_deploy.apiserver.reload import Change, FileChanged, Refused, changes
from llama_deploy.apiserver.served_access import OwnTokens, ServedAccess
from llama_deploy.apiserver.served_log import logged, written_to
from llama_deploy.apiserver.specs import ControlPlaneSpec, DeploymentFile, ServiceSpec
from llama_deploy.apiserver.stores import open_store
from llama_deploy.apiserver.supervisor import ChildSpec, ChildState, ChildStatus, Supervisor
from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.http.listener import bind
from llama_deploy.control_plane.leadership import Sharing
from llama_deploy.control_plane.registry import is_reserved
from llama_deploy.errors import LlamaDeployError, ServiceStartError
from llama_deploy.runtime.failpoints import arm_from_environment
from llama_deploy.runtime.line_log import LineLog

STOP_GRACE_S = 5.0
"""How much longer than its drain a service process may take to end before it is killed."""
OWN_DRAIN_S = 2.0
"""How long requests to webhooks that are under way may take when the control plane stops; others go out when it is
back."""

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingOptions:
    """What a person said beside the deployment file; it wins over the file."""

    host: str | None = None
    port: int | None = None
    store: str | None = None
    """A path relative to the current folder, or `:memory:`."""
    message_queue: str | None = None
    """The URL of the carrier, or `simple` for the queue that is built in."""
    allow_remote: bool = False
    """Listen beyond loopback although no token is asked for."""
    drain_timeout_s: float = 30.0
    """How long a service may finish what it holds when it is stopped; the rest is handed back."""
    shared: bool = False
    """Share the store with other control planes."""
    public_url: str | None = None
    """Where services and other control planes reach this one."""
    release: str | None = None
    """The release that the code of the services is of, current once all of it is ready."""
    ready_file: Path | None = None
    """Written once everything is ready, removed when it stops."""
    listener_descriptor: int | None = None
    """A socket that listens already and that somebody else keeps open, in the place of `host` and `port`."""
    own_tokens: OwnTokens | None = None
    """Those of an API server that this control plane belongs to; nobody else is let in then, whatever the file says."""
    on_ready: Callable[[], None] = lambda: None
    """Called when a control plane that runs alone is ready."""


async def serve_control_plane(file: DeploymentFile, options: ServingOptions, report: Report) -> None:
    """Run the control plane of a deployment alone until SIGTERM or SIGINT; its services connect to it by themselves."""
    arm_from_environment()
    ready_file = ReadyFile(options.ready_file, report)
    with logged(report) as (log, told):
        async with _control_plane(file, options, told, log=log) as plane:
            await _tell_schedules(plane, told)
            _Instances(plane, file, told, tell_gone=True)
            stop = asyncio.Event()
            async with plane.serving():
                with on_signals(stop.set), plane.served.reloading(), ready_file:
                    ready_file.write(url=local_url(plane.url), store=plane.store_location)
                    options.on_ready()
                    await stop.wait()
                told("stopping")


async def serve_deployment(
    file: DeploymentFile, options: ServingOptions, report: Report, *, watch: bool = False
) -> bool:
    """Run a whole deployment until SIGTERM or SIGINT.

    A second signal kills the children without waiting and raises `KeyboardInterrupt`. With `watch`, services start
    again when their code changes; true is returned when the control plane itself has to start again, which takes a
    new process. Without, `ServiceStartError` is raised when a service cannot be started, `SourceError` for services
    that only run in images.
    """
    arm_from_environment()
    check_no_images(file)
    ready_file = ReadyFile(options.ready_file, report)
    with logged(report) as (log, told):
        async with _control_plane(file, options, told, log=log, own_services_apart=True) as plane:
            await _tell_schedules(plane, told)
            return await _Serving(plane, file, options, told, ready_file, watch=watch).run()


class _Serving:
    """A deployment that runs: its children, and the watcher of their code."""

    def __init__(
        self,
        plane: _Listening,
        file: DeploymentFile,
        options: ServingOptions,
        report: Report,
        ready_file: ReadyFile,
        *,
        watch: bool,
    ) -> None:
        self._plane = plane
        self._file = file
        self._options = options
        self._report = report
        self._watch = watch
        self._ready_file = ready_file
        self._supervisor = Supervisor(
            self._children(file),
            on_event=self._child_changed,
            write=written_to(plane.log),
            stop_timeout_s=options.drain_timeout_s + STOP_GRACE_S,
        )
        self._instances = _Instances(plane, file, report, on_ready=self._ready, on_served=self._supervisor.proved)
        self._watching: asyncio.Task[None] | None = None
        self._waits = False
        """The file has settings of the control plane with which it could not start so far."""
        self._hurried = False
        self._ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Why it stops: false for a signal, true to start everything again, or the reason why it cannot run."""

    async def run(self) -> bool:
        """Run until something ends it, and stop every child then."""
        with on_signals(self._signaled), contextlib.nullcontext() if self._watch else self._plane.served.reloading():
            self._watching = asyncio.create_task(self._follow_changes()) if self._watch else None
            try:
                await self._supervisor.start()
                async with self._plane.serving():  # while the services start
                    try:
                        with self._ready_file:
                            return await self._ended
                    finally:  # they hand back what they hold, so it is served until they have ended
                        await self._stop_children()
            finally:
                await self._stop_children()
                if self._hurried:
                    raise KeyboardInterrupt

    async def _stop_children(self) -> None:
        """Repeating it does nothing."""
        if self._watching is not None:
            self._watching.cancel()
        await self._supervisor.stop()

    def _ready(self) -> None:
        release = self._options.release
        if release is not None:  # what comes from here on begins with the code that runs here
            engine = self._plane.control_plane.engine
            engine.spawn(engine.releases.begin(release))
        self._ready_file.write(url=local_url(self._plane.url), store=self._plane.store_location)

    def _signaled(self) -> None:
        if self._ended.done():
            self._hurried = True
            self._supervisor.kill()
        else:
            self._report("stopping; once more to stop at once")
            self._ended.set_result(False)

    def _children(self, file: DeploymentFile) -> list[ChildSpec]:
        """One child for each replica of each service."""
        return [
            ChildSpec(
                name=service.name if service.replicas == 1 else f"{service.name}/{number}",
                command=self._command(file, service),
                folder=file.folder,
                environment=service.environment(file.folder) | self._plane.served.own_environment,
                without=file.access.variables,
                service=service.name,
                version=repr(service),
            )
            for service in file.services
            for number in range(1, service.replicas + 1)
        ]

    def _command(self, file: DeploymentFile, service: ServiceSpec) -> tuple[str, ...]:
        # -P: the folder that the child works in holds the user's modules, and none of them may stand in for ours.
        program = (sys.executable, "-P", "-m", "llama_deploy.cli", "serve", str(file.path), "--only", service.name)
        drain = f"{self._options.drain_timeout_s:g}"
        release = () if self._options.release is None else ("--release", self._options.release)
        return (*program, "--control-plane", self._plane.own_url, "--drain-timeout", drain, *release)

    def _child_changed(self, status: ChildStatus) -> None:
        if status.state is ChildState.BACKOFF:
            self._report(f"{status.name}: {status.ended}; it starts again in {status.pause_s:g} s")
        elif status.state is ChildState.FAILED:
            after = f" after {status.restarts} restarts" if status.restarts else ""
            then = "; it starts again when its code changes" if self._watch else ""
            self._report(f"{status.name}: failed{after} ({status.ended}){then}")
            if not self._watch and not self._instances.all_ready and not self._ended.done():
                self._ended.set_exception(_start_error(status))

    async def _follow_changes(self) -> None:
        """Act on changes until the control plane has to start again, which takes a new process."""
        try:
            async for change in changes(self._file):
                if await self._changed(change):
                    if not self._ended.done():
                        self._ended.set_result(True)
                    return
        except OSError as error:
            self._report(f"changes are not watched: {error}")

    async def _changed(self, change: Change) -> bool:
        if isinstance(change, Refused):
            self._report(f"{change.reason}\nNothing was restarted.")
            return False
        if isinstance(change, FileChanged):
            return await self._file_changed(change.file)
        if self._waits or _imported_here(change.files):
            return await self._can_start_again()
        names = ", ".join(sorted({path.name for path in change.files}))
        self._report(f"changed: {names}; restarting {', '.join(change.services)}")
        statuses = [status for status in self._supervisor.statuses if status.service in change.services]
        await asyncio.gather(*(self._supervisor.restart(status.name) for status in statuses))
        return False

    async def _file_changed(self, file: DeploymentFile) -> bool:
        for notice in file.notices:
            self._report(notice)
        self._waits = control_plane_settings(self._file) != control_plane_settings(file)
        if self._waits:
            return await self._can_start_again()
        try:
            children = self._children(file)
        except (LlamaDeployError, OSError) as error:
            why = error.render() if isinstance(error, LlamaDeployError) else f"{file.path.name}: {error}"
            self._report(f"{why}\nNothing was restarted.")
            return False
        self._report(f"changed: {file.path.name}")
        before, self._file = self._file, file
        if file.access != before.access:
            self._plane.served.reload()
        self._instances.expect(file)
        await self._supervisor.replace(children)
        return False

    async def _can_start_again(self) -> bool:
        """Whether the deployment as it is on disk would start; says why not, and everything stays as it is then."""
        if why := await why_not(self._file.path):
            self._report(f"{why}\nNothing was restarted.")
            return False
        self._report("the control plane's own code or settings changed; starting everything again")
        return True


class _Instances:
    """Says when services have instances, and when all of them have."""

    def __init__(
        self,
        plane: _Listening,
        file: DeploymentFile,
        report: Report,
        *,
        on_ready: Callable[[], None] = lambda: None,
        on_served: Callable[[str], None] = lambda _: None,
        tell_gone: bool = False,
    ) -> None:
        self._registry = plane.control_plane.engine.registry
        self._url = local_url(plane.url)
        self._report = report
        self._on_ready = on_ready
        self._on_served = on_served
        self._tell_gone = tell_gone
        self._served: set[str] = set()
        self.all_ready = False
        """Every service of the file has had an instance, all at the same time."""
        self.expect(file)
        self._registry.watchers.add(self._look)

    def expect(self, file: DeploymentFile) -> None:
        """These are the services of the deployment from now on."""
        self._names = [service.name for service in file.services]
        self.all_ready = False

    def _look(self) -> None:
        names = [name for name in self._registry.services if not is_reserved(name)]
        served = {name for name in names if self._registry.has_instance(name)}
        for name in sorted(served - self._served):
            self._on_served(name)
            self._report(f"{name}: ready")
        if self._tell_gone:
            for name in sorted(self._served - served):
                self._report(f"{name}: nobody serves it now")
        self._served = served
        if not self.all_ready and served.issuperset(self._names):
            self.all_ready = True
            self._on_ready()
            self._report(f"ready. Try: llamactl {self._example(self._names[0])}    Stop: Ctrl-C")

    def _example(self, name: str) -> str:
        """A command that runs a service, with the arguments that its schema asks for."""
        definition = self._registry.definition(name)
        schema = (definition.input_schema if definition is not None else None) or {}
        required = schema.get("required") or list(schema.get("properties", {}))[:1]
        usual = ControlPlaneSpec()
        server = "" if self._url == url_of(usual.host, usual.port) else f"-s {self._url} "
        return " ".join([f"{server}run", name, *(f"-a {argument} ..." for argument in required)])


@contextlib.contextmanager
def on_signals(received: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT call `received`, each time they arrive."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listening:
    """A control plane whose store is open and whose port is bound; whoever connects waits until it is served."""

    control_plane: ControlPlane
    listener: socket.socket
    url: str
    served: ServedAccess
    log: LineLog
    own_listener: socket.socket | None = None
    """Where the server's own services connect when the other one speaks TLS; only this machine reaches it."""

    @property
    def own_url(self) -> str:
        """Where the services that this process starts reach it."""
        if self.own_listener is None:
            return local_url(self.url)
        return url_of("127.0.0.1", self.own_listener.getsockname()[1])

    @property
    def store_location(self) -> str:
        """Where the data lives."""
        return self.control_plane.store.location

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve it for as long as the block runs. The web framework is imported now, while services start."""
        from llama_deploy.control_plane.http.server import serving

        async with contextlib.AsyncExitStack() as stack:
            for listener, tls in ((self.listener, self.served.tls), (self.own_listener, None)):
                if listener is not None:
                    access = self.served.access
                    await stack.enter_async_context(serving(self.control_plane, listener, access=access, tls=tls))
            yield


async def _tell_schedules(plane: _Listening, report: Report) -> None:
    """One line for each schedule, where this control plane is the one that looks after them."""
    schedules = plane.control_plane.schedules
    for view in await schedules.list() if schedules.in_charge else ():
        if view.paused:
            report(f"schedule {view.name}: paused {view.paused_because}".rstrip())
        elif view.next_at is not None:
            when = datetime.fromtimestamp(view.next_at).astimezone().isoformat(sep=" ", timespec="seconds")
            report(f"schedule {view.name}: next at {when}")
        else:
            report(f"schedule {view.name}: it has no further times")


@contextlib.asynccontextmanager
async def _control_plane(
    file: DeploymentFile, options: ServingOptions, report: Report, *, log: LineLog, own_services_apart: bool = False
) -> AsyncIterator[_Listening]:
    """The control plane of a deployment, and the sockets that it listens on.

    With `own_services_apart` services are started that connect to it.
    """
    host = options.host or file.control_plane.host
    if options.own_tokens is None:
        read = partial(_access_of_file, file.path)
        served = ServedAccess(
            file.access, file.folder, file.name, host=host, allow_remote=options.allow_remote, report=report, read=read
        )
    else:
        served = ServedAccess.between(options.own_tokens, report=report)
    key_file = file.folder / file.encryption_key_file if file.encryption_key_file is not None else None
    shared = options.shared or file.control_plane.shared
    if options.store is not None:
        store = open_store(options.store, key_file=key_file, shared=shared)
    else:
        store = open_store(file.store, name=file.name, folder=file.folder, key_file=key_file, shared=shared)
    sharing = Sharing() if shared else None
    control_plane = ControlPlane(
        store=store,
        sharing=sharing,
        queue=open_queue(relocated(file.message_queue.settings(file.folder), options.message_queue)),
        orchestrator=load_orchestrator(file.orchestrator, file.folder),
        orchestrators={name: load_orchestrator(spec, file.folder) for name, spec in file.orchestrators.items()},
        default_service=file.default_service or (file.services[0].name if len(file.services) == 1 else None),
        settings=file.limits,
        name=file.name,
        webhooks=file.webhooks.settings(file.folder),
        redact=file.redact,
        schedules=file.schedules,
    )
    control_plane.log = log
    port = file.control_plane.port if options.port is None else options.port
    with contextlib.ExitStack() as stack:
        stack.callback(served.close)
        listener = stack.enter_context(_listener(host, port, options, tokens=served.asks_for_tokens))
        own = stack.enter_context(bind("127.0.0.1", 0)) if served.tls is not None and own_services_apart else None
        shown_host = host if options.listener_descriptor is None else listener.getsockname()[0]
        url = url_of(shown_host, listener.getsockname()[1], tls=served.tls is not None)
        if sharing is not None:
            sharing.url = reached_at(options.public_url or file.control_plane.public_url, url)
        await control_plane.start()
        try:
            report(f"{file.name}: control plane at {url}, data in {control_plane.store.location}")
            served.tell()
            async with own_services(control_plane, drain_timeout_s=OWN_DRAIN_S):
                yield _Listening(
                    control_plane=control_plane, listener=listener, url=url, served=served, own_listener=own, log=log
                )
        finally:
            await control_plane.stop()


def _listener(host: str, port: int, options: ServingOptions, *, tokens: bool) -> socket.socket:
    """The socket to serve: a new one, or the one that was handed down."""
    if options.listener_descriptor is None:
        return bind(host, port, allow_remote=options.allow_remote or tokens)
    listener = socket.socket(fileno=options.listener_descriptor)
    listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return listener


def _access_of_file(path: Path) -> AccessSpec:
    """What a deployment file says now of who is let in."""
    return load_deployment_file(path).access


def control_plane_settings(file: DeploymentFile) -> tuple[object, ...]:
    """What of a deployment file only a new control plane takes notice of."""
    return (
        file.name,
        file.control_plane,
        file.orchestrator,
        file.orchestrators,
        file.default_service,
        file.limits,
        file.store,
        file.message_queue,
        file.redact,
        file.encryption_key_file,
        file.webhooks,
        file.schedules,
        file.access.tls is None,
    )


def _imported_here(files: tuple[Path, ...]) -> bool:
    """Whether this process runs code of these files: the orchestrator's, or what it imports."""
    changed = {str(path) for path in files}
    modules = list(sys.modules.values())
    return any(getattr(module, "__file__", None) in changed for module in modules)


def _start_error(status: ChildStatus) -> ServiceStartError:
    return ServiceStartError(
        f"service `{status.service}` cannot be started ({status.ended})",
        why="\n".join(status.last_lines),
        fix="llamactl serve FILE --check   import everything that the file names, and start nothing",
        service=status.service,
    )
