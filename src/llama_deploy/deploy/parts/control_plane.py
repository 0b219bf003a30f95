"""`ControlPlaneServer`: a `Deployment` under the published name, for programs that put a system together by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy.apiserver import Deployment
from llama_deploy.apiserver.local_instance import LocalInstance
from llama_deploy.client.http_calls import segment
from llama_deploy.deploy.config import ControlPlaneConfig
from llama_deploy.deploy.cores import address_of, deployment_of
from llama_deploy.deploy.lines import Calls
from llama_deploy.deploy.parts.consumers import BaseMessageQueueConsumer, StartConsuming, until_canceled
from llama_deploy.deploy.parts.queues import BaseMessageQueue
from llama_deploy.errors import SettingError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.base import Service
from llama_deploy.types import ServiceDefinition, SessionDefinition, TaskDefinition, TaskResult

if TYPE_CHECKING:
    from llama_deploy.deploy.parts.application import App, Application

log = get_logger("llama_deploy.deploy")


class ControlPlaneServer:
    """A control plane; `launch_server` has it listen, and anything that is asked of it has it run in this process.

    `config`, or its fields by name (`host`, `port`, ...). Everything is recorded as `state_store_uri` says.
    """

    def __init__(
        self,
        message_queue: Any = None,
        orchestrator: BaseOrchestrator | None = None,
        publish_callback: Any = None,
        state_store: Any = None,
        config: ControlPlaneConfig | None = None,
        **fields: Any,
    ) -> None:
        """Raises `TypeError` for a field that there is none of, `SettingError` for what is no orchestrator."""
        unknown = sorted(fields.keys() - ControlPlaneConfig.model_fields.keys())
        if unknown:
            raise TypeError(f"ControlPlaneServer() got an unexpected keyword argument {unknown[0]!r}")
        if orchestrator is not None and not isinstance(orchestrator, BaseOrchestrator):
            raise SettingError(
                f"a {type(orchestrator).__qualname__} is no orchestrator", fix="give an object of a BaseOrchestrator"
            )
        for name, given in (("publish_callback", publish_callback), ("state_store", state_store)):
            if given is not None:
                log.warning("this argument is not used", argument=name)
        self.config = config or ControlPlaneConfig(**fields)
        self.orchestrator = orchestrator or SimpleOrchestrator()
        self.message_queue = message_queue
        self.publisher_id = "control_plane"
        self._app: Application | None = None
        self._deployment: Deployment | None = None
        self._plane_app: App | None = None
        self._starting = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        if isinstance(message_queue, BaseMessageQueue):
            message_queue.control_plane = self

    @property
    def host(self) -> str:
        """Where it listens."""
        return self.config.host

    @property
    def port(self) -> int | None:
        """Where it listens."""
        return self.config.port

    @property
    def url(self) -> str:
        """Where it listens, for services and clients."""
        return self.config.url

    @property
    def app(self) -> Application:
        """Its application: routes and middleware may be added to it before `launch_server`.

        Another ASGI server may run it in the place of `launch_server`, on the event loop of this program.
        """
        if self._app is None:
            from llama_deploy.deploy.parts.application import Application

            self._app = Application(self._own_application)
        return self._app

    async def _own_application(self) -> App:
        from llama_deploy.control_plane.http.app import build_app

        deployment = await self._running()
        if self._plane_app is None:
            self._plane_app = build_app(deployment.plane)
        return self._plane_app

    # --- running --------------------------------------------------------------------------------------------------

    async def launch_server(self) -> None:
        """Run and listen until this is canceled. Raises `PortInUseError`, `UnsafeListenError`, `StoreLockedError`."""
        async with contextlib.AsyncExitStack() as stack:
            async with self._starting:
                if self._deployment is None:
                    deployment = await stack.enter_async_context(self._made(listening=True))
                    self._deployment = deployment
                    stack.callback(self._forget)
                else:  # a part of this process needed it before it was told to listen
                    allow_remote = self.config.allow_remote
                    listening = self._deployment.listening(*address_of(self.config), allow_remote=allow_remote)
                    await stack.enter_async_context(listening)
            await until_canceled()

    def _forget(self) -> None:
        self._deployment = self._plane_app = None
        if self._app is not None:
            self._app.inner = None

    def _made(self, *, listening: bool) -> Deployment:
        made = deployment_of(self.config, self.orchestrator, message_queue=self.message_queue, listening=listening)
        made.around = self._served
        return made

    def _served(self, application: App) -> App:
        """What is served, once it listens: its own application, within the one that the program knows."""
        if self._app is None:
            return application
        self._app.inner = application
        return self._app

    async def _running(self) -> Deployment:
        """What runs; where nothing does yet, a control plane that does not listen, until the event loop ends."""
        async with self._starting:
            if self._deployment is None:
                deployment = self._made(listening=False)
                await deployment.__aenter__()
                self._deployment = deployment
                self._keeping = asyncio.create_task(self._keep(deployment))
            return self._deployment

    async def _keep(self, deployment: Deployment) -> None:
        try:
            await until_canceled()
        finally:
            self._forget()
            await deployment.__aexit__(None, None, None)

    async def serve_here(self, services: Sequence[Service], stop: asyncio.Event, *, drain_timeout_s: float) -> None:
        """For this package: serve in this process, with no connection between, until `stop`."""
        async with self._instance(services, drain_timeout_s):
            await stop.wait()

    @contextlib.asynccontextmanager
    async def _instance(self, services: Sequence[Service], drain_timeout_s: float) -> AsyncIterator[None]:
        instance = LocalInstance((await self._running()).plane, services)
        await instance.start()
        try:
            yield
        finally:
            await instance.stop(drain_timeout_s)

    async def register_to_message_queue(self) -> StartConsuming:
        """Nothing to register with: messages are carried within. What is returned waits until it is canceled."""
        return until_canceled

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - the published signature
        """A consumer that hands new tasks to it."""
        del remote
        return _ControlPlaneConsumer(self)

    # --- what may be asked of it ----------------------------------------------------------------------------------

    async def _ask(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        client = (await self._running()).client
        return await Calls(client, client.settings.timeout_s).ask(method, path, body, **params)

    async def home(self) -> dict[str, Any]:
        """That it runs."""
        found: dict[str, Any] = await self._ask("GET", "/")
        return found

    async def process_message(self, message: QueueMessage) -> None:
        """Take a new task as a message. Raises `NotOfferedError` for any other."""
        await self._ask("POST", "/process_message", message.model_dump(mode="json"))

    async def publish(self, message: QueueMessage, **_: Any) -> None:
        """The same."""
        await self.process_message(message)

    async def get_message_queue_config(self) -> dict[str, dict[str, Any]]:
        """What carries messages."""
        found: dict[str, dict[str, Any]] = await self._ask("GET", "/queue_config")
        return found

    async def register_service(self, service_def: ServiceDefinition) -> ControlPlaneConfig:
        """Know a service by name; tasks for it are accepted while an instance of it is there."""
        await self._ask("POST", "/services/register", service_def.model_dump(mode="json", exclude_unset=True))
        return self.config

    async def deregister_service(self, service_name: str) -> None:
        """Know a service no more."""
        await self._ask("POST", "/services/deregister", service_name=service_name)

    async def get_service(self, service_name: str) -> ServiceDefinition:
        """One service."""
        return ServiceDefinition.model_validate(await self._ask("GET", f"/services/{segment(service_name)}"))

    async def get_all_services(self) -> dict[str, ServiceDefinition]:
        """Every known service by its name."""
        found = await self._ask("GET", "/services")
        return {name: ServiceDefinition.model_validate(one) for name, one in found.items()}

    async def create_session(self) -> str:
        """A new session; its id."""
        return str(await self._ask("POST", "/sessions/create"))

    async def get_session(self, session_id: str) -> SessionDefinition:
        """One session."""
        return SessionDefinition.model_validate(await self._ask("GET", f"/sessions/{segment(session_id)}"))

    async def get_all_sessions(self) -> dict[str, SessionDefinition]:
        """Sessions by their ids."""
        found = await self._ask("GET", "/sessions")
        return {name: SessionDefinition.model_validate(one) for name, one in found.items()}

    async def delete_session(self, session_id: str) -> None:
        """Erase a session: its tasks, their results, its state."""
        await self._ask("POST", f"/sessions/{segment(session_id)}/delete")

    async def get_session_state(self, session_id: str) -> dict[str, Any]:
        """The state that the session's tasks share."""
        found: dict[str, Any] = await self._ask("GET", f"/sessions/{segment(session_id)}/state")
        return found

    async def update_session_state(self, session_id: str, state: dict[str, Any]) -> None:
        """Put these keys into the state."""
        await self._ask("POST", f"/sessions/{segment(session_id)}/state", state)

    async def add_task_to_session(self, session_id: str, task_def: TaskDefinition) -> str:
        """Submit a task of a session; its id, once it is recorded."""
        body = task_def.model_dump(mode="json")
        return str(await self._ask("POST", f"/sessions/{segment(session_id)}/tasks", body))

    async def send_task_to_service(self, task_def: TaskDefinition) -> TaskDefinition:
        """Submit a task; it is recorded when this returns."""
        if task_def.session_id is None:
            task_def.session_id = await self.create_session()
        await self.add_task_to_session(task_def.session_id, task_def)
        return task_def

    async def get_session_tasks(self, session_id: str) -> list[TaskDefinition]:
        """The session's tasks, in the order of submission."""
        found = await self._ask("GET", f"/sessions/{segment(session_id)}/tasks")
        return [TaskDefinition.model_validate(one) for one in found]

    async def get_current_task(self, session_id: str) -> TaskDefinition | None:
        """The task that was submitted last."""
        found = await self._ask("GET", f"/sessions/{segment(session_id)}/current_task")
        return None if found is None else TaskDefinition.model_validate(found)

    async def get_task_result(self, task_id: str, session_id: str) -> TaskResult | None:
        """The outcome, `None` while there is none."""
        found = await self._ask("GET", f"/sessions/{segment(session_id)}/tasks/{segment(task_id)}/result")
        return None if found is None else TaskResult.model_validate(found)

    def get_task_result_stream(self, session_id: str, task_id: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a task as they happen, until it ends."""
        del session_id
        return self._events(task_id)

    async def _events(self, task_id: str) -> AsyncIterator[dict[str, Any]]:
        client = (await self._running()).client
        async for event in Calls(client, client.settings.timeout_s).events(task_id):
            yield event


BaseControlPlane = ControlPlaneServer


class _ControlPlaneConsumer(BaseMessageQueueConsumer):
    """The control plane as its queue sees it."""

    def __init__(self, control_plane: ControlPlaneServer) -> None:
        super().__init__(message_type="control_plane")
        self._control_plane = control_plane
        self.place = _NoPlace()
        """It needs none: whatever is for the control plane comes to it by itself."""

    async def process_message(self, message: QueueMessage, **_: Any) -> None:
        await self._control_plane.process_message(message)


class _NoPlace:
    """What `Place` is for services."""

    def enter_here(self) -> None:
        """Nothing to serve."""

    async def leave(self) -> None:
        """Nothing to leave."""
