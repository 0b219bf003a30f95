"""`client.apiserver`: a server with its deployments, as the published client has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import Enum
from typing import Any, BinaryIO, TextIO
from uuid import uuid4

from pydantic import BaseModel

from llama_deploy.client import Client
from llama_deploy.client.http_calls import segment
from llama_deploy.deploy.lines import Lines, serialized
from llama_deploy.deploy.sdk.lines import api_server_lines
from llama_deploy.errors import CannotReachError
from llama_deploy.types import EventDefinition, SessionDefinition, TaskDefinition, TaskResult


class StatusEnum(Enum):
    """How a server is."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    DOWN = "Down"


class Status(BaseModel):
    """What a server says of itself."""

    status: StatusEnum
    status_message: str = ""
    max_deployments: int | None = None
    deployments: list[str] | None = None


class DeploymentDefinition(BaseModel):
    """A deployment by its name."""

    name: str


class ListedSession(SessionDefinition):
    """A session in a list; published clients give its fields as those of a dictionary."""

    def __getitem__(self, name: str) -> Any:
        return self.model_dump()[name]


class ApiServer:
    """A server with its deployments."""

    id = "apiserver"

    def __init__(self, client: Client) -> None:
        self._lines = api_server_lines(client)
        self.deployments = DeploymentCollection(self._lines)

    async def status(self) -> Status:
        """How it is; also where nothing answers."""
        try:
            return Status.model_validate(await (await self._lines.calls()).ask("GET", "/status/"))
        except CannotReachError as error:
            return Status(status=StatusEnum.DOWN, status_message=str(error))


class DeploymentCollection:
    """The deployments of a server."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._is_control_plane: bool | None = None

    async def _deployment(self, name: str) -> Deployment:
        """A deployment with the line to its control plane: the server itself, or what is below it under the name."""
        if self._is_control_plane is None:
            home = await (await self._lines.calls()).ask("GET", "/")
            self._is_control_plane = isinstance(home, dict) and "api" in home
        plane = self._lines if self._is_control_plane else self._lines.below(f"/deployments/{segment(name)}")
        return Deployment(self._lines, plane, name)

    async def list(self) -> list[Deployment]:
        """Every deployment."""
        calls = await self._lines.calls()
        return [await self._deployment(name) for name in await calls.ask("GET", "/deployments/")]

    async def get(self, id: str) -> Deployment:
        """One deployment. Raises `DeploymentNotFoundError`."""
        found = await (await self._lines.calls()).ask("GET", f"/deployments/{segment(id)}")
        return await self._deployment(found["name"])

    async def create(
        self,
        config: TextIO | BinaryIO,
        reload: bool = False,  # noqa: FBT001, FBT002 - the published signature
        skip_deployment: bool = False,  # noqa: FBT001, FBT002 - the published signature
        base_path: str | None = None,
        local: bool = False,  # noqa: FBT001, FBT002 - the published signature
    ) -> Deployment:
        """Run the deployment of a file. Raises what the server refuses with: one that takes no further ones, all."""
        del skip_deployment
        text = config.read()
        content = text.encode() if isinstance(text, str) else text
        query = {"reload": reload, "base_path": base_path, "local": local}
        params = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
        given = {name: value for name, value in params.items() if value is not None}
        found = await (await self._lines.calls()).upload("/deployments/create", _form(content), params=given)
        return await self._deployment(found["name"])


class Deployment:
    """One deployment by its name, `id`."""

    def __init__(self, lines: Lines, plane: Lines, name: str) -> None:
        self.id = name
        self.tasks = TaskCollection(lines, plane, name)
        self.sessions = SessionCollection(lines, name)

    def __repr__(self) -> str:
        return f"<deployment {self.id!r}>"


class TaskCollection:
    """The tasks of a deployment."""

    def __init__(self, lines: Lines, plane: Lines, deployment_id: str) -> None:
        self._lines = lines
        self._plane = plane
        self.deployment_id = deployment_id

    @property
    def _path(self) -> str:
        return f"/deployments/{segment(self.deployment_id)}/tasks"

    async def run(self, task: TaskDefinition) -> Any:
        """Run a task to its end; the text of its result. Raises `TaskFailed`, `WaitTimeoutError`."""
        return await (await self._plane.calls()).run_task(task)

    async def create(self, task: TaskDefinition) -> Task:
        """Submit a task, and make its session where it names none."""
        calls = await self._lines.calls()
        body = task.model_dump(mode="json")
        made = await calls.ask("POST", f"{self._path}/create", body, session_id=task.session_id)
        return self._task(TaskDefinition.model_validate(made))

    async def list(self) -> list[Task]:
        """The tasks, in the order of submission."""
        found = await (await self._lines.calls()).ask("GET", self._path)
        return [self._task(TaskDefinition.model_validate(one)) for one in found]

    async def get(self, id: str) -> Task:
        """One task. Raises `TaskNotFoundError`."""
        view = await (await self._plane.calls()).client.get_task(id)
        return Task(
            self._lines,
            self._plane,
            self.deployment_id,
            TaskDefinition(input="", task_id=view.task_id, session_id=view.session_id),
        )

    def _task(self, made: TaskDefinition) -> Task:
        return Task(self._lines, self._plane, self.deployment_id, made)


class Task:
    """One task of a deployment, by its `id`."""

    def __init__(self, lines: Lines, plane: Lines, deployment_id: str, task: TaskDefinition) -> None:
        self._lines = lines
        self._plane = plane
        self.id = self.task_id = task.task_id
        self.deployment_id = deployment_id
        self.session_id = task.session_id

    def __repr__(self) -> str:
        return f"<task {self.id!r}>"

    @property
    def _path(self) -> str:
        return f"/deployments/{segment(self.deployment_id)}/tasks/{segment(self.id)}"

    async def results(self) -> TaskResult:
        """The outcome. Raises `TaskNotFoundError` while there is none."""
        calls = await self._lines.calls()
        return TaskResult.model_validate(await calls.ask("GET", f"{self._path}/results", session_id=self.session_id))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events as they happen, until it ends; none is missed when the connection is lost."""
        async for event in (await self._plane.calls()).events(self.id):
            yield event

    async def send_event(self, ev: Any, service_name: str) -> EventDefinition:
        """Send an event to the running workflow; it is recorded when this returns."""
        event = {"service_id": service_name, "event_obj_str": serialized(ev)}
        calls = await self._lines.calls()
        sent = await calls.ask("POST", f"{self._path}/events", event, session_id=self.session_id)
        return EventDefinition.model_validate(sent)


class SessionCollection:
    """The sessions of a deployment."""

    def __init__(self, lines: Lines, deployment_id: str) -> None:
        self._lines = lines
        self.deployment_id = deployment_id

    @property
    def _path(self) -> str:
        return f"/deployments/{segment(self.deployment_id)}/sessions"

    async def create(self) -> SessionDefinition:
        """A new session."""
        made = await (await self._lines.calls()).ask("POST", f"{self._path}/create")
        return SessionDefinition.model_validate(made)

    async def list(self) -> list[ListedSession]:
        """The sessions, the newest first."""
        found = await (await self._lines.calls()).ask("GET", self._path)
        return [ListedSession.model_validate(one) for one in found]

    async def get(self, id: str) -> SessionDefinition:
        """One session. Raises `SessionNotFoundError`."""
        found = await (await self._lines.calls()).ask("GET", f"{self._path}/{segment(id)}")
        return SessionDefinition.model_validate(found)

    async def delete(self, session_id: str) -> None:
        """Erase a session: its tasks, their results, its state."""
        await (await self._lines.calls()).ask("POST", f"{self._path}/delete", session_id=session_id)


def _form(content: bytes) -> tuple[str, bytes]:
    """A body of `multipart/form-data` (RFC 7578) with the deployment file as `config_file`, and its content type."""
    boundary = uuid4().hex
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="config_file"; filename="deployment.yml"\r\n'
        "Content-Type: application/x-yaml\r\n\r\n"
    )
    return f"multipart/form-data; boundary={boundary}", head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
