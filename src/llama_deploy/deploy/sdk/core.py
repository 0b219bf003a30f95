"""`client.core`: the control plane with its services and sessions, as the published client has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from llama_deploy.client import Client
from llama_deploy.client.http_calls import segment
from llama_deploy.deploy.lines import Calls, Lines, serialized
from llama_deploy.deploy.sdk.lines import control_plane_lines
from llama_deploy.types import ServiceDefinition, SessionDefinition, TaskDefinition, TaskResult


class Core:
    """A control plane."""

    id = "core"

    def __init__(self, client: Client) -> None:
        lines = control_plane_lines(client)
        self.services = ServiceCollection(lines)
        self.sessions = SessionCollection(lines)


class Service:
    """A service by its name, `id`."""

    def __init__(self, definition: ServiceDefinition) -> None:
        self.id = definition.service_name
        self.definition = definition

    def __repr__(self) -> str:
        return f"<service {self.id!r}>"


class ServiceCollection:
    """The services of a control plane."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    async def list(self) -> list[Service]:
        """Every known service."""
        calls = await self._lines.calls()
        return [
            Service(ServiceDefinition.model_validate(one)) for one in (await calls.ask("GET", "/services")).values()
        ]

    async def get(self, id: str) -> Service:
        """One service. Raises `ServiceUnknownError`."""
        calls = await self._lines.calls()
        return Service(ServiceDefinition.model_validate(await calls.ask("GET", f"/services/{segment(id)}")))

    async def register(self, service: ServiceDefinition) -> Service:
        """Know a service by name; tasks for it are accepted while an instance of it is connected."""
        calls = await self._lines.calls()
        await calls.ask("POST", "/services/register", service.model_dump(mode="json", exclude_unset=True))
        return Service(service)

    async def deregister(self, service_name: str) -> None:
        """Know a service no more."""
        await (await self._lines.calls()).ask("POST", "/services/deregister", service_name=service_name)


class SessionCollection:
    """The sessions of a control plane."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    async def list(self) -> list[Session]:
        """The sessions, the newest first."""
        calls = await self._lines.calls()
        return [Session(self._lines, name) for name in await calls.ask("GET", "/sessions")]

    async def create(self) -> Session:
        """A new session."""
        calls = await self._lines.calls()
        return Session(self._lines, (await calls.client.create_session()).session_id)

    async def get(self, id: str) -> Session:
        """A session that exists. Raises `SessionNotFoundError`."""
        calls = await self._lines.calls()
        return Session(self._lines, (await calls.client.get_session(id)).session_id)

    async def get_or_create(self, id: str) -> Session:
        """The session of this id, made if there is none."""
        calls = await self._lines.calls()
        return Session(self._lines, (await calls.client.create_session(id)).session_id)

    async def delete(self, session_id: str) -> None:
        """Erase a session: its tasks, their results, its state."""
        await (await self._lines.calls()).ask("POST", f"/sessions/{segment(session_id)}/delete")


class Session:
    """One session by its `id`."""

    def __init__(self, lines: Lines, session_id: str) -> None:
        self._lines = lines
        self.id = session_id

    def __repr__(self) -> str:
        return f"<session {self.id!r}>"

    @property
    def session_id(self) -> str:
        """The same as `id`."""
        return self.id

    @property
    def _path(self) -> str:
        return f"/sessions/{segment(self.id)}"

    async def _calls(self) -> Calls:
        return await self._lines.calls()

    async def run(self, service_name: str, **run_kwargs: Any) -> str:
        """Run a task to its end; its result as text. Raises `TaskFailed`, `WaitTimeoutError`."""
        return await (await self._calls()).run(service_name, self.id, run_kwargs)

    async def run_nowait(self, service_name: str, **run_kwargs: Any) -> str:
        """Submit a task; its id, once it is recorded."""
        return await (await self._calls()).submit(service_name, self.id, run_kwargs)

    async def create_task(self, task_def: TaskDefinition) -> str:
        """Submit a task as it is defined; its id."""
        task_def.session_id = self.id
        return str(await (await self._calls()).ask("POST", f"{self._path}/tasks", task_def.model_dump(mode="json")))

    async def get_tasks(self) -> list[TaskDefinition]:
        """The session's tasks, in the order of submission."""
        found = await (await self._calls()).ask("GET", f"{self._path}/tasks")
        return [TaskDefinition.model_validate(one) for one in found]

    async def get_current_task(self) -> TaskDefinition | None:
        """The task that was submitted last."""
        found = await (await self._calls()).ask("GET", f"{self._path}/current_task")
        return None if found is None else TaskDefinition.model_validate(found)

    async def get_task_result(self, task_id: str) -> TaskResult | None:
        """The outcome, `None` while there is none; of a failed task its `status` says so."""
        found = await (await self._calls()).ask("GET", f"{self._path}/tasks/{segment(task_id)}/result")
        return None if found is None else TaskResult.model_validate(found)

    async def get_task_result_stream(self, task_id: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a task as they happen, until it ends; none is missed when the connection is lost."""
        async for event in (await self._calls()).events(task_id):
            yield event

    async def send_event(self, service_name: Any, task_id: Any, ev: Any) -> None:
        """Send an event to a running workflow; it is recorded when this returns.

        The published versions do not agree on the order: the event may come first as well.
        """
        if not isinstance(service_name, str):
            ev, service_name, task_id = service_name, task_id, ev
        event = {"service_id": service_name, "event_obj_str": serialized(ev)}
        await (await self._calls()).ask("POST", f"{self._path}/tasks/{segment(task_id)}/send_event", event)

    async def definition(self) -> SessionDefinition:
        """The session with its tasks and its state."""
        return SessionDefinition.model_validate(await (await self._calls()).ask("GET", self._path))
