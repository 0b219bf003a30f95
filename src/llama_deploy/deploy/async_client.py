"""`AsyncLlamaDeployClient`: the client of 0.2, over the parts that the one of 0.8 has (`sdk.core`).

It may be used from any event loop, and needs no closing. Deliberately different: a task that failed raises
`TaskFailed`, and a task for a service that nobody serves is refused.
"""

from __future__ import annotations

from typing import Any

from llama_deploy.deploy.config import ControlPlaneConfig
from llama_deploy.deploy.lines import Lines, SharedLines
from llama_deploy.deploy.sdk.core import ServiceCollection, Session, SessionCollection
from llama_deploy.errors import SessionNotFoundError
from llama_deploy.types import ServiceDefinition, SessionDefinition


class AsyncSessionClient(Session):
    """One session of a control plane."""

    def __init__(
        self,
        control_plane_config: ControlPlaneConfig,
        session_id: str,
        timeout: float = 120.0,
        poll_interval: float = 0.5,
        *,
        lines: Lines | None = None,
    ) -> None:
        """With `lines`, over the connections of the client that made it. `poll_interval` is not used."""
        super().__init__(lines or lines_to(control_plane_config, timeout), session_id)
        self.control_plane_config = control_plane_config
        self.timeout = timeout
        self.poll_interval = poll_interval

    async def send_event(self, ev: Any, service_name: Any, task_id: Any) -> None:  # type: ignore[override]
        """Send an event to a running workflow; it is recorded when this returns. The event may come last as well."""
        await super().send_event(ev, service_name, task_id)


class AsyncLlamaDeployClient:
    """A client of one control plane: its sessions and services."""

    def __init__(self, control_plane_config: ControlPlaneConfig | None = None, timeout: float = 120.0) -> None:
        self.control_plane_config = control_plane_config or ControlPlaneConfig()
        self.control_plane_url = self.control_plane_config.url
        self.timeout = timeout
        self._lines = lines_to(self.control_plane_config, timeout)
        self._sessions = SessionCollection(self._lines)
        self._services = ServiceCollection(self._lines)

    def _session(self, session_id: str, poll_interval: float) -> AsyncSessionClient:
        return AsyncSessionClient(self.control_plane_config, session_id, self.timeout, poll_interval, lines=self._lines)

    async def create_session(self, poll_interval: float = 0.5) -> AsyncSessionClient:
        """A new session."""
        return self._session((await self._sessions.create()).id, poll_interval)

    async def list_sessions(self) -> list[SessionDefinition]:
        """The sessions, the newest first."""
        found = await (await self._lines.calls()).ask("GET", "/sessions")
        return [SessionDefinition.model_validate(one) for one in found.values()]

    async def get_session(self, session_id: str, poll_interval: float = 0.5) -> AsyncSessionClient:
        """A session that exists. Raises `ValueError` for any other."""
        try:
            return self._session((await self._sessions.get(session_id)).id, poll_interval)
        except SessionNotFoundError as error:
            raise ValueError(str(error)) from error

    async def get_or_create_session(self, session_id: str, poll_interval: float = 0.5) -> AsyncSessionClient:
        """The session of this id, made if there is none."""
        return self._session((await self._sessions.get_or_create(session_id)).id, poll_interval)

    async def delete_session(self, session_id: str) -> None:
        """Erase a session: its tasks, their results, its state."""
        await self._sessions.delete(session_id)

    async def list_services(self) -> list[ServiceDefinition]:
        """Every known service."""
        return [one.definition for one in await self._services.list()]

    async def get_service(self, service_name: str) -> ServiceDefinition:
        """One service."""
        return (await self._services.get(service_name)).definition

    async def register_service(self, service_def: ServiceDefinition) -> None:
        """Know a service by name."""
        await self._services.register(service_def)

    async def deregister_service(self, service_name: str) -> None:
        """Know a service no more."""
        await self._services.deregister(service_name)


def lines_to(config: ControlPlaneConfig, timeout: float) -> Lines:
    """Connections to the control plane that a configuration names."""
    return SharedLines(config.url, timeout_s=timeout)
