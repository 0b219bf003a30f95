"""A service as a tool of any agent: name, description and JSON Schema from the service, and a call through the engine.

Within a step the call is a child of it, found again by a later attempt; elsewhere it goes through a client. The forms
in which libraries take tools are made on demand, so none of the libraries is imported here.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakKeyDictionary

from llama_deploy.errors import InvalidRequestError, ServiceUnknownError, SettingError, TaskFailed, WaitTimeoutError
from llama_deploy.messages.values import encode_json
from llama_deploy.services.base import StepContext, running_step
from llama_deploy.types import ServiceDefinition, TaskOptions

if TYPE_CHECKING:
    from agents import FunctionTool as OpenAITool
    from langchain_core.tools import StructuredTool
    from pydantic_ai import Tool as PydanticAITool

NAME_CHARS_MAX = 64
"""The longest name of a tool that model providers take, in characters."""
_TOLD = (TaskFailed, WaitTimeoutError, ServiceUnknownError)
"""Failures that an agent may do something about."""
_ANY_INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The input of the service, as text."}},
    "required": ["input"],
}
_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
}

_calls: WeakKeyDictionary[StepContext, Counter[str]] = WeakKeyDictionary()


class CallsServices(Protocol):
    """What is asked of a client: the async one, or the one that waits where it is called."""

    def run(self, service: str | None, /, *, input: Any, timeout_s: float | None, options: Any) -> Any:
        """Submit a task and return its output."""
        ...


class ServiceAsTool:
    """A service that agents call as a tool; calling the object calls the service.

    `await tool(city="Bergen")` is what a library does with it. `for_pydantic_ai()`, `for_langchain()` (LangGraph, too),
    `for_openai_agents()` and `for_llama_index()` make the library's own kind of tool of it. What the service returns is
    given to the agent as it is. When it fails, `on_error="tell"` gives the agent the error as text, so that it may try
    something else; `"raise"` raises `TaskFailed`.
    """

    def __init__(
        self,
        service: Any,
        *,
        name: str | None = None,
        description: str | None = None,
        schema: Mapping[str, Any] | None = None,
        client: CallsServices | None = None,
        on_error: Literal["tell", "raise"] = "tell",
        timeout_s: float | None = None,
        options: TaskOptions | Mapping[str, Any] | None = None,
    ) -> None:
        """`service` is anything that can be a service, its `ServiceDefinition`, or a service's name.

        Of a name nothing else is known: give `description` and `schema`, or use `published`. `client` is used outside
        of steps. Raises `SettingError`.
        """
        definition = _definition(service)
        self.service_name = definition.service_name
        self.name = name or _tool_name(definition.service_name)
        self.description = description or definition.description
        if not re.fullmatch(rf"[a-zA-Z0-9_-]{{1,{NAME_CHARS_MAX}}}", self.name):
            raise SettingError(
                f"{self.name!r} cannot be the name of a tool",
                fix=f"use letters, digits, `_` and `-`, at most {NAME_CHARS_MAX}",
            )
        known = dict(schema or definition.input_schema or {})
        self.takes_fields = known.get("type") == "object" and "properties" in known
        self.schema: dict[str, Any] = known if self.takes_fields else _ANY_INPUT
        """JSON Schema of the arguments."""
        self._client = client
        self._on_error = on_error
        self._timeout_s = timeout_s
        self._options = options
        # What libraries read that take plain functions.
        self.__name__ = self.__qualname__ = self.name
        self.__doc__ = self.description
        self.__signature__ = _signature(self.schema)
        self.__annotations__ = {name: one.annotation for name, one in self.__signature__.parameters.items()}

    @classmethod
    async def published(cls, client: Any, service: str, **settings: Any) -> ServiceAsTool:
        """A tool of a service that is registered with a control plane, as it has described itself there.

        `client` is an async `Client`, and used for calls outside of steps. Raises `ServiceUnknownError`.
        """
        view = await client.get_service(service)
        return cls(view.definition, **{"client": client, **settings})

    def __repr__(self) -> str:
        return f"<tool {self.name!r}: service {self.service_name!r}>"

    async def __call__(self, *args: Any, **arguments: Any) -> Any:
        """Call the service; what it returned, as JSON types, or the text of its error."""
        bound = self.__signature__.bind_partial(*args)
        given = {**bound.arguments, **arguments}
        try:
            return await self._called(given)
        except _TOLD as error:
            if self._on_error == "raise":
                raise
            return _in_words(self.name, error)

    def blocking(self, **arguments: Any) -> Any:
        """The same for code in a thread."""
        try:
            return self._called_blocking(arguments)
        except _TOLD as error:
            if self._on_error == "raise":
                raise
            return _in_words(self.name, error)

    async def _called(self, arguments: dict[str, Any]) -> Any:
        step = running_step()
        if step is not None:
            key = _key(step, self.service_name, arguments)
            return await step.call(
                self.service_name,
                input=self._input(arguments),
                key=key,
                timeout_s=self._timeout_s,
                options=self._options,
            )
        value = self._by_client(arguments)
        return await value if isinstance(value, Awaitable) else value

    def _called_blocking(self, arguments: dict[str, Any]) -> Any:
        step = running_step()
        if step is not None:
            key = _key(step, self.service_name, arguments)
            return step.blocking.call(
                self.service_name,
                input=self._input(arguments),
                key=key,
                timeout_s=self._timeout_s,
                options=self._options,
            )
        value = self._by_client(arguments)
        if inspect.iscoroutine(value):
            value.close()
            raise InvalidRequestError(
                f"the tool `{self.name}` has an async client and is called from a thread",
                fix="give it a SyncClient, or await it",
            )
        return value

    def _by_client(self, arguments: dict[str, Any]) -> Any:
        if self._client is None:
            raise InvalidRequestError(
                f"the tool `{self.name}` is called outside of any step",
                fix="call it from the code of a service, or give ServiceAsTool(..., client=client)",
            )
        return self._client.run(
            self.service_name, input=self._input(arguments), timeout_s=self._timeout_s, options=self._options
        )

    def _input(self, arguments: dict[str, Any]) -> Any:
        return arguments if self.takes_fields else arguments.get("input", "")

    # --- as other libraries take tools ------------------------------------------------------------------------------

    def for_pydantic_ai(self) -> PydanticAITool[Any]:
        """For `Agent(tools=[...])` of pydantic-ai."""
        from pydantic_ai import Tool

        return Tool.from_schema(self.__call__, name=self.name, description=self.description, json_schema=self.schema)

    def for_langchain(self) -> StructuredTool:
        """For LangChain and LangGraph: `ToolNode([...])`, `model.bind_tools([...])`."""
        from langchain_core.tools import StructuredTool

        return StructuredTool(
            name=self.name,
            description=self.description or self.name,
            args_schema=self.schema,
            func=self.blocking,
            coroutine=self.__call__,
        )

    def for_openai_agents(self) -> OpenAITool:
        """For `Agent(tools=[...])` of the OpenAI Agents SDK."""
        from agents import FunctionTool

        async def invoke(context: Any, arguments: str) -> str:
            del context
            value = await self(**(json.loads(arguments) if arguments.strip() else {}))
            return value if isinstance(value, str) else encode_json(value).decode()

        return FunctionTool(
            name=self.name,
            description=self.description,
            params_json_schema=self.schema,
            on_invoke_tool=invoke,
            strict_json_schema=False,  # a service may have optional arguments
        )

    def for_llama_index(self) -> Any:
        """For `FunctionAgent(tools=[...])` of llama-index, where `llama-index-core` is installed."""
        from llama_index.core.tools import (  # type: ignore[import-not-found,unused-ignore]
            FunctionTool,
            ToolMetadata,
        )
        from pydantic import BaseModel

        schema = self.schema

        class Arguments(BaseModel, extra="allow"):
            @classmethod
            def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
                del args, kwargs
                return schema

        metadata = ToolMetadata(name=self.name, description=self.description, fn_schema=Arguments)
        return FunctionTool(fn=self.blocking, async_fn=self.__call__, metadata=metadata)


def _definition(service: Any) -> ServiceDefinition:
    if isinstance(service, ServiceDefinition):
        return service
    if isinstance(service, str):
        return ServiceDefinition(service_name=service, description="")
    from llama_deploy.services.adapters import as_service

    return as_service(service).definition


def _tool_name(service_name: str) -> str:
    """The service's name with what no model provider takes replaced."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", service_name)[:NAME_CHARS_MAX]


def _key(step: StepContext, service: str, arguments: Mapping[str, Any]) -> str:
    """The name of a call within its step.

    A model may call its tools in another order when the step is tried again, or call others. So a call is known by what
    it asks for, and by how often that was asked since the step waited last: then the run goes on from its snapshot, and
    the calls before are over.
    """
    asked = json.dumps([service, arguments], sort_keys=True, ensure_ascii=False).encode()
    what = hashlib.sha256(asked + b"\0" + (step.snapshot or b"")).hexdigest()[:24]
    counter = _calls.setdefault(step, Counter())
    counter[what] += 1
    return f"tool:{what}:{counter[what]}"


def _in_words(name: str, error: Exception) -> str:
    remote = getattr(error, "error", None)
    told = remote.message if remote is not None and remote.message else str(error)
    fix = f" {remote.fix}" if remote is not None and remote.fix else ""
    return f"Error: {name} failed: {told}{fix}"


def _signature(schema: Mapping[str, Any]) -> inspect.Signature:
    required = schema.get("required", ())
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if name in required else field.get("default"),
            annotation=_TYPES.get(str(field.get("type")), Any),
        )
        for name, field in schema["properties"].items()
        if name.isidentifier()
    ]
    parameters.sort(key=lambda one: one.default is not inspect.Parameter.empty)
    return inspect.Signature(parameters)
