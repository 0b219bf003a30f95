"""The published services, put together by hand: our own with the published arguments and the published methods.

Each is what it is in `llama_deploy.services` where it is made as there. Given a message queue, it takes the published
arguments, and is told by the published methods when to serve: `register_to_control_plane`, `launch_local`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from string import Formatter
from typing import Any, overload

from llama_deploy import services as house
from llama_deploy.deploy.parts.consumers import BaseMessageQueueConsumer, StartConsuming, until_canceled
from llama_deploy.deploy.parts.places import Place
from llama_deploy.deploy.parts.queues import BaseMessageQueue, meeting_place
from llama_deploy.errors import SettingError
from llama_deploy.messages import QueueMessage
from llama_deploy.services.agent_memory import is_agent
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.services.human import Notify, PlainHumanService
from llama_deploy.services.results import result_from_value
from llama_deploy.services.tool import PlainToolService
from llama_deploy.types import ActionTypes, ChatMessage, MessageRole, ServiceDefinition, TaskResult

_COMMON: dict[str, Any] = {
    "running": True,
    "publish_callback": None,
    "step_interval": 0.1,
    "host": None,
    "port": None,
    "internal_host": None,
    "internal_port": None,
    "raise_exceptions": False,
    "use_tls": False,
}
"""Published arguments that mean nothing here, or only what a definition says."""


class BaseService(Service):
    """What is put together by hand: a service, the queue that it was given, and its place at a control plane."""

    message_queue: BaseMessageQueue
    _place: Place

    def _put_together(self, queue: Any, settings: dict[str, Any]) -> None:
        """Take the arguments that all have. Raises `TypeError` for what is left."""
        given = {**_COMMON, **{name: settings.pop(name) for name in _COMMON if name in settings}}
        if settings:
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {next(iter(settings))!r}")
        self.message_queue = meeting_place(queue)
        self.definition.host, self.definition.port = given["host"], given["port"]
        self.host, self.port, self.raise_exceptions = given["host"], given["port"], given["raise_exceptions"]
        self.publisher_id = f"{type(self).__qualname__}-{self.definition.service_name}"
        self._place = Place([self], self.message_queue)

    @property
    def service_name(self) -> str:
        """Its name."""
        return self.definition.service_name

    @property
    def service_definition(self) -> ServiceDefinition:
        """What it says of itself."""
        return self.definition

    @property
    def tool_name(self) -> str:
        """Its name as a tool."""
        return f"{self.service_name}-as-tool"

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - the published signature
        """It as a consumer; registered at the queue, it is served at the control plane that was made with the queue."""
        del remote
        return ServiceConsumer(self, self._place)

    async def register_to_control_plane(self, control_plane_url: str) -> None:
        """Serve at a control plane; it is registered when this returns. Raises `CannotReachError`."""
        await self._place.enter(control_plane_url)

    async def deregister_from_control_plane(self, control_plane_url: str | None = None) -> None:
        """Finish or hand back what it holds, and serve no more."""
        del control_plane_url
        await self._place.leave()

    async def register_to_message_queue(self) -> StartConsuming:
        """Nothing to register with. What is returned waits until it is canceled; the service leaves then."""
        return self._place.stay

    async def deregister_from_message_queue(self) -> None:
        """Nothing to do."""

    async def launch_server(self) -> None:
        """Wait until this is canceled, and leave then. It serves from `register_to_control_plane` on."""
        await self._place.stay()

    async def processing_loop(self) -> None:
        """Serve at the control plane that was made with the queue, until this is canceled."""
        self._place.enter_here()
        await self._place.stay()

    async def launch_local(self) -> asyncio.Task[None]:
        """The same, as a task."""
        return asyncio.create_task(self.processing_loop())


class ServiceConsumer(BaseMessageQueueConsumer):
    """A service as its queue sees it: messages come to it by its place."""

    def __init__(self, service: Service, place: Place) -> None:
        super().__init__(message_type=service.definition.service_name, consuming_callable=until_canceled)
        self.place = place

    async def process_message(self, message: QueueMessage, **_: Any) -> None:
        """Raises `SettingError`: nobody hands messages over by hand."""
        raise SettingError(f"a message for {message.type!r} is carried by its control plane", fix="submit a task")


class HumanService(BaseService, PlainHumanService):
    """A person: as `llama_deploy.services.HumanService`, or put together by hand.

    By hand, `fn_input(prompt, task_id=...)` is asked for the answer; where none is given, the terminal, if there is
    one, or else whoever answers the task (`llamactl tasks send`, `Client.send_input`).
    """

    _fn_input: Callable[..., Any] | None = None

    @overload
    def __init__(
        self,
        name: str = "human",
        *,
        prompt: str | None = None,
        answer: Any = None,
        notify: Notify | None = None,
        description: str = "A person who answers questions and hears of finished tasks.",
        concurrency: int = 64,
        run_timeout_s: float = 60.0,
    ) -> None: ...

    @overload
    def __init__(self, message_queue: BaseMessageQueue, **settings: Any) -> None: ...

    def __init__(self, *args: Any, message_queue: Any = None, **settings: Any) -> None:
        """With a `message_queue` (which may come first), by hand. Raises `ValueError` for another prompt's fields."""
        if args and isinstance(args[0], BaseMessageQueue):
            message_queue, args = args[0], args[1:]
        if message_queue is None:
            PlainHumanService.__init__(self, *args, **settings)
            return
        prompt = settings.pop("human_input_prompt", None)
        fields = {field for _, field, _, _ in Formatter().parse(prompt or "{input_str}") if field is not None}
        if fields != {"input_str"}:
            raise ValueError("`input_str` should be the only parameter in the prompt template")
        self._fn_input = settings.pop("fn_input", None) or (_ask_terminal if sys.stdin.isatty() else None)
        PlainHumanService.__init__(
            self,
            settings.pop("service_name", "default_human_service"),
            prompt=None if prompt is None else prompt.replace("{input_str}", "{input}"),
            description=settings.pop("description", "Local Human Service"),
        )
        self._put_together(message_queue, settings)

    async def run(self, context: StepContext) -> TaskResult | Parked:
        if self._fn_input is None or context.action == ActionTypes.COMPLETED_TASK.value:
            return await super().run(context)
        ask, prompt = self._fn_input, self._text(context)
        if inspect.iscoroutinefunction(ask) or inspect.iscoroutinefunction(getattr(ask, "__call__", None)):  # noqa: B004
            return result_from_value(await ask(prompt, task_id=context.task_id))
        return result_from_value(await asyncio.to_thread(ask, prompt, task_id=context.task_id))


def _ask_terminal(prompt: str, task_id: str, **_: Any) -> str:
    """What somebody types."""
    del task_id
    return input(prompt)


class ToolService(BaseService, PlainToolService):
    """Tools: as `llama_deploy.services.ToolService`, or put together by hand."""

    @overload
    def __init__(
        self,
        tools: Iterable[Any],
        *,
        name: str = "tools",
        description: str | None = None,
        concurrency: int = 8,
        run_timeout_s: float = 600.0,
    ) -> None: ...

    @overload
    def __init__(
        self, message_queue: BaseMessageQueue, tools: Iterable[Any] | None = None, **settings: Any
    ) -> None: ...

    def __init__(self, *args: Any, message_queue: Any = None, **settings: Any) -> None:
        """With a `message_queue` (which may come first), by hand: `tools`, `service_name`, `description`."""
        if args and isinstance(args[0], BaseMessageQueue):
            message_queue, args = args[0], args[1:]
        if message_queue is None:
            PlainToolService.__init__(self, *args, **settings)
            return
        tools: Iterable[Any] | None = args[0] if args else settings.pop("tools", None)
        PlainToolService.__init__(
            self,
            tools or (),
            name=settings.pop("service_name", "default_tool_service"),
            description=settings.pop("description", "Tool Server"),
        )
        self._put_together(message_queue, settings)


class AgentService(BaseService):
    """An agent, served: one with `achat` or `chat`, an agent workflow, or whatever else can be a service.

    An agent that chats keeps its conversation itself, for all tasks, in this process; one task after the other.
    """

    def __init__(
        self, agent: Any, message_queue: Any, prompt: list[ChatMessage] | None = None, **settings: Any
    ) -> None:
        self.agent = agent
        name = settings.pop("service_name", "default_agent")
        description = settings.pop("description", "Agent Server")
        self._inner = None if _chats(agent) else house.as_service(agent, name=name, description=description)
        self.definition = ServiceDefinition(
            service_name=name, description=description, prompt=prompt or [], kind="agent", concurrency=1
        )
        if self._inner is not None:
            self.definition = self._inner.definition.model_copy(update={"prompt": prompt or []})
        self._put_together(message_queue, settings)

    async def start(self) -> None:
        if self._inner is not None:
            await self._inner.start()

    async def stop(self) -> None:
        if self._inner is not None:
            await self._inner.stop()

    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Chat, or run the agent. Raises what the agent raises."""
        if self._inner is not None:
            if is_agent(self.agent) and context.action == ActionTypes.NEW_TASK.value:
                _say_to_workflow(context)
            return await self._inner.run(context)
        text = _text_of(context)
        if callable(getattr(self.agent, "achat", None)):
            said = await self.agent.achat(text)
        else:
            said = await asyncio.to_thread(self.agent.chat, text)
        result = result_from_value(str(said))
        result.history = [_message(one) for one in getattr(self.agent, "chat_history", None) or ()]
        return result

    async def reset_agent(self) -> dict[str, str]:
        """Have an agent that chats forget its conversation."""
        if callable(getattr(self.agent, "reset", None)):
            self.agent.reset()
        return {"message": "Agent reset"}


class ComponentService(BaseService):
    """A query component or pipeline, served: the arguments of a task are its input."""

    def __init__(self, component: Any, message_queue: Any, **settings: Any) -> None:
        """Raises `SettingError` for what is neither."""
        self._run = next(
            (found for name in ("arun_component", "arun") if callable(found := getattr(component, name, None))), None
        )
        if self._run is None:
            raise SettingError(
                f"a {type(component).__qualname__} is no component",
                fix="give an object with `arun_component` or `arun`",
            )
        self.component = component
        self.definition = ServiceDefinition(
            service_name=settings.pop("service_name", "default_component_service"),
            description=settings.pop("description", "Component Server"),
        )
        self._put_together(message_queue, settings)

    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Run the component. Raises what it raises."""
        assert self._run is not None
        given = context.arguments
        arguments = given if isinstance(given, dict) else {"input": given}
        return result_from_value(await self._run(**arguments))


def _chats(agent: Any) -> bool:
    return any(callable(getattr(agent, name, None)) for name in ("achat", "chat"))


def _text_of(context: StepContext) -> str:
    """The input: where it is `{"input": text}`, as tools give it, the text."""
    given = context.arguments
    if isinstance(given, dict) and given.keys() == {"input"}:
        return str(given["input"])
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _say_to_workflow(context: StepContext) -> None:
    """Have an agent workflow given a text, which is all that agents once took, as what a user says."""
    given = context.arguments
    if not isinstance(given, dict) or given.keys() == {"input"}:
        task = {**context.data["task"], "input": json.dumps({"user_msg": _text_of(context)})}
        context.data = {**context.data, "task": task}


def _message(message: Any) -> ChatMessage:
    """A message of an agent's conversation as ours."""
    role = getattr(message.role, "value", message.role)
    return ChatMessage(role=MessageRole(role), content=str(message.content or ""))
