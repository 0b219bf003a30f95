"""`Deployment`: a control plane, its services and a client in one process; the same parts that run apart elsewhere.

Without arguments about it, everything is recorded in `.llama_deploy/<name>.db` below the current folder, and the next
run under the same name carries on with what was unfinished.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from llama_deploy.apiserver.addresses import url_of
from llama_deploy.apiserver.local_instance import LocalInstance, own_services
from llama_deploy.apiserver.stores import open_store
from llama_deploy.client import Client, InProcessTransport
from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.errors import SettingError
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.runtime import Clock
from llama_deploy.services import as_service
from llama_deploy.state_stores import StateStore
from llama_deploy.types.schedules import Schedule
from llama_deploy.types.webhooks import WebhookSettings


class Deployment:
    """Services and everything they need, embedded in this process.

    `services` are functions, workflows or `Service` objects. `store` is a path, `":memory:"`, or a `StateStore`; by
    default `.llama_deploy/<name>.db` below the current folder. `orchestrator` decides who gets what; by default each
    task goes to the service that it names. With `encryption_key_file`, or keys in the environment, the content of a
    store in a file is encrypted. `orchestrators` are further ones by name, for tasks that ask for one
    (`options={"orchestrator": name}`); `"name@1"` is an earlier version, for the tasks that began with it. With
    `port`, the control plane also listens there (0: a free port) for clients and for services in other processes.
    `webhooks` says who is told of the end of tasks, and who may be. `redact` are patterns of keys whose values people
    do not get to see.
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
        orchestrator: BaseOrchestrator | None = None,
        orchestrators: Mapping[str, BaseOrchestrator] | None = None,
        default_service: str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        allow_remote: bool = False,
        settings: EngineSettings | None = None,
        clock: Clock | None = None,
        webhooks: WebhookSettings | None = None,
        redact: Sequence[str] = (),
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
        self.plane = ControlPlane(
            store=open_store(store, name=name, key_file=encryption_key_file),
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
        self._drain_timeout_s = drain_timeout_s
        self._quiet = quiet
        self._stack = contextlib.AsyncExitStack()
        self.url = ""
        """Where the control plane listens; empty without `port`."""

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
            listener = self._bind()
            if listener is not None:
                stack.callback(listener.close)
            await self.plane.start()
            stack.push_async_callback(self.plane.stop)
            if not self._quiet:
                sys.stderr.write(f"llama_deploy: data of {self.name!r} in {self.store_location}{self._carried_on()}\n")
            if listener is not None:
                from llama_deploy.control_plane.http.server import serving

                await stack.enter_async_context(serving(self.plane, listener))
            await stack.enter_async_context(own_services(self.plane, drain_timeout_s=self._drain_timeout_s))
            if self.services:
                instance = LocalInstance(self.plane, self.services)
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

    def _bind(self) -> socket.socket | None:
        if self._listen is None:
            return None
        from llama_deploy.control_plane.http.listener import bind

        host, port, allow_remote = self._listen
        listener = bind(host, port, allow_remote=allow_remote)
        self.url = url_of(host, listener.getsockname()[1])
        return listener

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
