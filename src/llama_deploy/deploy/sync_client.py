"""`LlamaDeployClient`: `AsyncLlamaDeployClient` for blocking code, method by method.

A loop in a thread of its own does the work; what arguments mean and what is raised is said there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llama_deploy.client.portal import Portal
from llama_deploy.deploy.async_client import AsyncLlamaDeployClient, AsyncSessionClient
from llama_deploy.deploy.config import ControlPlaneConfig
from llama_deploy.deploy.threads import portal_of
from llama_deploy.types import ServiceDefinition, SessionDefinition, TaskDefinition, TaskResult


class SessionClient:
    """`AsyncSessionClient`, blocking; see there."""

    def __init__(self, session: AsyncSessionClient, portal: Portal, client: LlamaDeployClient) -> None:
        self._session = session
        self._portal = portal
        self._client = client
        """Kept, because its portal ends with it."""
        self.session_id = session.session_id

    def run(self, service_name: str, **run_kwargs: Any) -> str:
        return self._portal.call(self._session.run(service_name, **run_kwargs))

    def run_nowait(self, service_name: str, **run_kwargs: Any) -> str:
        return self._portal.call(self._session.run_nowait(service_name, **run_kwargs))

    def create_task(self, task_def: TaskDefinition) -> str:
        return self._portal.call(self._session.create_task(task_def))

    def get_tasks(self) -> list[TaskDefinition]:
        return self._portal.call(self._session.get_tasks())

    def get_current_task(self) -> TaskDefinition | None:
        return self._portal.call(self._session.get_current_task())

    def get_task_result(self, task_id: str) -> TaskResult | None:
        return self._portal.call(self._session.get_task_result(task_id))

    def get_task_result_stream(self, task_id: str) -> Iterator[dict[str, Any]]:
        return self._portal.iterate(lambda: self._session.get_task_result_stream(task_id))

    def send_event(self, ev: Any, service_name: str, task_id: str) -> None:
        self._portal.call(self._session.send_event(ev, service_name, task_id))


class LlamaDeployClient:
    """`AsyncLlamaDeployClient`, blocking; see there."""

    def __init__(self, control_plane_config: ControlPlaneConfig | None = None, timeout: float = 120.0) -> None:
        self._client = AsyncLlamaDeployClient(control_plane_config, timeout)
        self._portal = portal_of(self, "llama-deploy-published-client")
        self.control_plane_config = self._client.control_plane_config
        self.control_plane_url = self._client.control_plane_url
        self.timeout = timeout

    def _made(self, session: AsyncSessionClient) -> SessionClient:
        return SessionClient(session, self._portal, self)

    def create_session(self, poll_interval: float = 0.5) -> SessionClient:
        return self._made(self._portal.call(self._client.create_session(poll_interval)))

    def list_sessions(self) -> list[SessionDefinition]:
        return self._portal.call(self._client.list_sessions())

    def get_session(self, session_id: str, poll_interval: float = 0.5) -> SessionClient:
        return self._made(self._portal.call(self._client.get_session(session_id, poll_interval)))

    def get_or_create_session(self, session_id: str, poll_interval: float = 0.5) -> SessionClient:
        return self._made(self._portal.call(self._client.get_or_create_session(session_id, poll_interval)))

    def delete_session(self, session_id: str) -> None:
        self._portal.call(self._client.delete_session(session_id))

    def list_services(self) -> list[ServiceDefinition]:
        return self._portal.call(self._client.list_services())

    def get_service(self, service_name: str) -> ServiceDefinition:
        return self._portal.call(self._client.get_service(service_name))

    def register_service(self, service_def: ServiceDefinition) -> None:
        self._portal.call(self._client.register_service(service_def))

    def deregister_service(self, service_name: str) -> None:
        self._portal.call(self._client.deregister_service(service_name))
