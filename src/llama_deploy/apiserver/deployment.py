"""`Deployment`: a control plane, its services and a client in one process; the same parts that run apart elsewhere.

Without arguments about it, everything is recorded in `.llama_deploy/<name>.db` below the current folder, and the next
run under the same name carries on with what was unfinished.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from llama_deploy.apiserver.addresses import local_url, reached_at, url_of
from llama_deploy.apiserver.local_instance import LinkedInstance, LocalInstance, own_services
from llama_deploy.apiserver.queues import open_queue
from llama_deploy.apiserver.stores import open_store
from llama_deploy.client import Client, InProcessTransport
from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.leadership import Sharing
from llama_deploy.errors import SettingError
from llama_deploy.message_queues import MessageQueue
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.runtime import Clock
from llama_deploy.services import as_service
from llama_deploy.state_stores import StateStore
from llama_deploy.types.access import AccessSettings
from llama_deploy.types.schedules import Schedule
from llama_deploy.types.webhooks import WebhookSettings


class Deployment:
    """Services and everything they need, embedded in this process.

    `services` are functions, workflows or `Service` objects. `store` is a path, `":memory:"`, the URL of a PostgreSQL
    database (`"postgresql://…"`), or a `StateStore`; by default `.llama_deploy/<name>.db` below the current folder.
    `orchestrator` decides who gets what; by default each
    task goes to the service that it names. With `encryption_key_file`, or keys in the environment, the content of a
    store in a file is encrypted. `orchestrators` are further ones by name, for tasks that ask for one
    (`options={"orchestrator": name}`); `"name@1"` is an earlier version, for the tasks that began with it. With
    `port`, the control plane also listens there (0: a free port) for clients and for services in other processes.
    `shared` says that other control planes share the store, a PostgreSQL database: this one leads its part of the
    sessions, and needs a `port`; `public_url` is where the others and all services reach it (where it listens).
    `message_queue` is the URL of a carrier (`redis://host`), the fields of `CarrierSettings`, or a `MessageQueue`; by
    default the queue within this process.
    `webhooks` says who is told of the end of tasks, and who may be. `redact` are patterns of keys whose values people
    do not get to see. `access` says who is let in to the port: tokens, TLS, the audit log.
    `schedules` are tasks that are submitted at times, by name; only this program changes what is given here.

    Use it as an async context manager. Leaving it finishes or hands back what runs; unfinished tasks stay recorded.
    """

    def __init__(
        self,
        services: Sequence[Any] = (),
        *,
        name: str = "default",
        store: str | os.PathLike[str] | StateStore | None = None,
        encryption_key_file: str | os.PathLike[str] | None = None,
        message_queue: str | Mapping[str, Any] | MessageQueue | None = None,
        orchestrator: BaseOrchestrator | None = None,
        orchestrators: Mapping[str, BaseOrchestrator] | None = None,
        default_service: str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        allow_remote: bool = False,
        shared: bool = False,
        public_url: str | None = None,
        settings: EngineSettings | None = None,
        clock: Clock | None = None,
        webhooks: WebhookSettings | None = None,
        redact: Sequence[str] = (),
        access: AccessSettings | None = None,
        schedules: Mapping[str, Schedule | Mapping[str, Any]] | None = None,
        drain_timeout_s: float = 10.0,
        quiet: bool = False,
    ) -> None:
        self.name = name
        self.services = [as_service(service) for service in services]
        names = [service.definition.service_name for service in self.services]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingError(f"two services are named {twice[0]!r}", fix="give one of them another name")
        if default_service is None and len(names) == 1:
            default_service = names[0]
        settings = settings or EngineSettings()
        if port is None:  # nobody outside of this process can come back with a step of an earlier run
            settings = replace(settings, recovery_grace_s=0.0)
        if shared and port is None:
            raise SettingError(
                "a control plane that shares its store has to listen",
                why="services and the other control planes connect to it",
                fix="give it a port: port=0 takes a free one",
            )
        self._sharing = Sharing(url=public_url or "") if shared else None
        self.plane = ControlPlane(
            store=open_store(store, name=name, key_file=encryption_key_file, shared=shared),
            sharing=self._sharing,
            queue=open_queue(message_queue, clock=clock),
            orchestrator=orchestrator,
            orchestrators=orchestrators,
            settings=settings,
            clock=clock,
            default_service=default_service,
            name=name,
            webhooks=webhooks,
            redact=redact,
            schedules=None if schedules is None else {name: _schedule(given) for name, given in schedules.items()},
        )
        self._listen = None if port is None else (host, port, allow_remote)
        self._access = access or AccessSettings()
        self._drain_timeout_s = drain_timeout_s
        self._quiet = quiet
        self._stack = contextlib.AsyncExitStack()
        self.url = ""
        """Where the control plane listens; empty without `port`."""

    around: Callable[[Any], Any] | None = None
    """For programs with routes of their own: given the application (ASGI) of the control plane, makes what is served.

    Set it before it listens. Where tokens are asked for, only the control plane's own routes are reached.
    """

    @property
    def store_location(self) -> str:
        """Where the data lives."""
        return self.plane.store.location

    @property
    def client(self) -> Client:
        """The client of this deployment; usable while it runs."""
        return self._client

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            listener = None if self._listen is None else stack.enter_context(self._bind(*self._listen))
            if self._sharing is not None:
                self._sharing.url = reached_at(self._sharing.url, self.url)
            await self.plane.start()
            stack.push_async_callback(self.plane.stop)
            if not self._quiet:
                sys.stderr.write(f"llama_deploy: data of {self.name!r} in {self.store_location}{self._carried_on()}\n")
            if listener is not None:
                await stack.enter_async_context(self._serving(listener))
            await stack.enter_async_context(own_services(self.plane, drain_timeout_s=self._drain_timeout_s))
            if self.services:
                at = None if self._sharing is None else local_url(self.url)
                instance = LinkedInstance(self.services, at) if at else LocalInstance(self.plane, self.services)
                await instance.start()
                stack.push_async_callback(instance.stop, self._drain_timeout_s)
            if self.plane.steps_carried_on and listener is None:
                await self.plane.sweeper.sweep()  # before anything new: a short program would end first
            self._client = await stack.enter_async_context(Client(transport=self._transport()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _carried_on(self) -> str:
        """What an earlier run has left, in words."""
        steps = self.plane.steps_carried_on
        return f", carrying on with {steps} unfinished step{'s' if steps > 1 else ''}" if steps else ""

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int, *, allow_remote: bool = False) -> AsyncIterator[str]:
        """Listen for as long as the block runs, beside what it may listen at already; gives the URL.

        For a program that runs without a port at first. Who is let in is the same. Raises `PortInUseError`,
        `UnsafeListenError`.
        """
        with self._bind(host, port, allow_remote) as listener:
            async with self._serving(listener):
                yield self.url

    def _bind(self, host: str, port: int, allow_remote: bool) -> socket.socket:  # noqa: FBT001 - as `_listen` has it
        from llama_deploy.control_plane.http.listener import bind

        listener = bind(host, port, allow_remote=allow_remote or bool(self._access.tokens))
        self.url = url_of(host, listener.getsockname()[1], tls=self._access.tls is not None)
        return listener

    @contextlib.asynccontextmanager
    async def _serving(self, listener: socket.socket) -> AsyncIterator[None]:
        from llama_deploy.control_plane.http.access.guard import Access
        from llama_deploy.control_plane.http.access.tls import server_context
        from llama_deploy.control_plane.http.server import serving

        access = Access(self._access, listens_on=listener.getsockname()[0])
        tls = server_context(self._access.tls) if self._access.tls is not None else None
        try:
            async with serving(self.plane, listener, access=access, tls=tls, around=self.around):
                yield
        finally:
            access.close()

    def _transport(self) -> InProcessTransport:
        application: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if not application:  # the web framework is only imported when something rare is asked for
                from llama_deploy.control_plane.http.app import build_app

                application.append(build_app(self.plane))
            await application[0](scope, receive, send)

        return InProcessTransport(self.plane.clients.attach, app)

    async def run(self, service: str | None = None, /, **arguments: Any) -> Any:
        """Submit a task, wait, and return its output; see `Client.run`."""
        return await self._client.run(service, **arguments)

    async def submit(self, service: str | None = None, /, **arguments: Any) -> str:
        """Submit a task and return its id as soon as it is recorded; see `Client.submit`."""
        return await self._client.submit(service, **arguments)


def _schedule(given: Schedule | Mapping[str, Any]) -> Schedule:
    """A schedule as it is kept. Raises `SettingError` for one that means nothing."""
    try:
        return given if isinstance(given, Schedule) else Schedule.model_validate(dict(given))
    except ValueError as error:
        raise SettingError("a schedule of the deployment does not fit", why=str(error)) from error
