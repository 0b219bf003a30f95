"""Services in the hands of agents of llama-index, under the published names; the calls are those of `ServiceAsTool`.

In a step of a service, a call is a durable child of it; elsewhere it goes to the control plane that the message queue
knows. Needs `llama-index-core`, which whoever has such an agent has.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from llama_deploy.deploy.lines import SharedLines
from llama_deploy.deploy.parts.queues import BaseMessageQueue
from llama_deploy.deploy.threads import portal_of
from llama_deploy.errors import MissingExtraError, ToolUnknownError
from llama_deploy.services.agents.service_tool import ServiceAsTool as OurServiceAsTool
from llama_deploy.services.base import running_step
from llama_deploy.types import ServiceDefinition

if TYPE_CHECKING:
    from llama_index.core.tools import (  # type: ignore[import-not-found,unused-ignore]
        AsyncBaseTool,
        ToolMetadata,
        ToolOutput,
    )
    from llama_index.core.tools.types import DefaultToolFnSchema  # type: ignore[import-not-found,unused-ignore]
else:
    try:
        from llama_index.core.tools import AsyncBaseTool, ToolMetadata, ToolOutput
        from llama_index.core.tools.types import DefaultToolFnSchema
    except ModuleNotFoundError:

        class AsyncBaseTool:
            """Stands where `llama-index-core` is not installed: the names are there, and making a tool says why not."""

            def __new__(cls, *_: Any, **__: Any) -> Any:
                raise MissingExtraError(
                    f"{cls.__name__} takes a package that is not installed (llama-index-core)",
                    fix="pip install llama-index-core; or give the agent a ServiceAsTool",
                )

        ToolMetadata = ToolOutput = DefaultToolFnSchema = AsyncBaseTool


class _ByAddress:
    """Fulfils `CallsServices`: a task at the control plane that a queue knows, from whatever loop."""

    def __init__(self, queue: BaseMessageQueue, timeout_s: float) -> None:
        self._queue = queue
        self._timeout_s = timeout_s

    async def run(self, service: str | None, /, *, input: Any, timeout_s: float | None, options: Any) -> Any:
        """Submit a task and return its output."""
        calls = await SharedLines(self._queue.control_plane_url, timeout_s=self._timeout_s).calls()
        return await calls.client.run(service, input=input, timeout_s=timeout_s or self._timeout_s, options=options)


class _OneTool(OurServiceAsTool):
    """One tool of a service of tools."""

    def __init__(self, tool: str, service: str, **settings: Any) -> None:
        super().__init__(service, name=tool, **settings)
        self._tool = tool

    def _input(self, arguments: dict[str, Any]) -> Any:
        return {"tool": self._tool, "args": arguments}


class AgentServiceTool(AsyncBaseTool):  # type: ignore[misc,unused-ignore]
    """A service as a tool: its input is one text, unless its metadata says more."""

    def __init__(  # noqa: PLR0917 - the published signature
        self,
        tool_metadata: ToolMetadata,
        message_queue: BaseMessageQueue,
        service_name: str,
        publish_callback: Any = None,
        tool_call_results: Any = None,
        timeout: float = 60.0,
        step_interval: float = 0.1,
        raise_timeout: bool = False,  # noqa: FBT001, FBT002 - the published signature
    ) -> None:
        """With `raise_timeout`, a failure is raised; else the agent is told of it."""
        del publish_callback, tool_call_results, step_interval  # nothing is published, kept or polled
        self._metadata = tool_metadata
        self.message_queue = message_queue
        self.service_name = service_name
        self._portal: Any = None
        plain = tool_metadata.fn_schema in (None, DefaultToolFnSchema)  # one text, which is the task's input as it is
        self._calling = self._made(
            schema=None if plain else tool_metadata.get_parameters_dict(),
            description=tool_metadata.description,
            client=_ByAddress(message_queue, timeout),
            timeout_s=timeout,
            on_error="raise" if raise_timeout else "tell",
        )

    def _made(self, **settings: Any) -> OurServiceAsTool:
        return OurServiceAsTool(self.service_name, **settings)

    @classmethod
    def from_service_definition(
        cls, message_queue: BaseMessageQueue, service_definition: ServiceDefinition, **settings: Any
    ) -> Self:
        """A tool of a service as that describes itself."""
        known = OurServiceAsTool(service_definition)
        fields: dict[str, Any] = {"fn_schema": _schema_class(known.schema)} if known.takes_fields else {}
        metadata = ToolMetadata(name=f"{known.name}-as-tool", description=service_definition.description, **fields)
        return cls(metadata, message_queue, service_definition.service_name, **settings)

    @property
    def metadata(self) -> ToolMetadata:
        """What agents see of it."""
        return self._metadata

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Call the service."""
        return self._output(await self._calling(*args, **kwargs), kwargs)

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """The same for code that does not await."""
        if running_step() is not None:
            bound = self._calling.__signature__.bind_partial(*args)
            return self._output(self._calling.blocking(**{**bound.arguments, **kwargs}), kwargs)
        if self._portal is None:
            self._portal = portal_of(self, "llama-deploy-tool")
        return self._output(self._portal.call(self._called(*args, **kwargs)), kwargs)

    async def _called(self, *args: Any, **kwargs: Any) -> Any:
        return await self._calling(*args, **kwargs)

    def _output(self, value: Any, kwargs: dict[str, Any]) -> ToolOutput:
        return ToolOutput(content=str(value), tool_name=str(self._metadata.name), raw_input=kwargs, raw_output=value)


class MetaServiceTool(AgentServiceTool):
    """A tool that a service of tools runs."""

    def __init__(  # noqa: PLR0917 - the published signature
        self,
        tool_metadata: ToolMetadata,
        message_queue: BaseMessageQueue,
        tool_service_name: str,
        publish_callback: Any = None,
        tool_call_results: Any = None,
        timeout: float = 10.0,
        step_interval: float = 0.1,
        raise_timeout: bool = False,  # noqa: FBT001, FBT002 - the published signature
    ) -> None:
        super().__init__(
            tool_metadata,
            message_queue,
            tool_service_name,
            publish_callback,
            tool_call_results,
            timeout,
            step_interval,
            raise_timeout,
        )

    def _made(self, **settings: Any) -> OurServiceAsTool:
        return _OneTool(str(self._metadata.name), self.service_name, **settings)

    @classmethod
    async def from_tool_service(
        cls,
        name: str,
        message_queue: BaseMessageQueue,
        tool_service: Any = None,
        tool_service_name: str | None = None,
        **settings: Any,
    ) -> Self:
        """A tool by its name, as its service describes it: the object, or what the control plane knows by this name.

        Raises `ToolUnknownError`.
        """
        settings = {key: value for key, value in settings.items() if not key.startswith("tool_service_")}
        if tool_service is not None:
            definition = tool_service.definition
        else:
            calls = await SharedLines(message_queue.control_plane_url, timeout_s=60.0).calls()
            definition = (await calls.client.get_service(tool_service_name or "default_tool_service")).definition
        tools = {one["title"]: one for one in (definition.input_schema or {}).get("oneOf", ())}
        if name not in tools:
            raise ToolUnknownError(
                f"`{definition.service_name}` has no tool {name!r}", why=f"its tools: {', '.join(tools) or 'none'}"
            )
        found = tools[name]
        metadata = ToolMetadata(
            name=name, description=found["description"], fn_schema=_schema_class(found["properties"]["args"])
        )
        return cls(metadata, message_queue, definition.service_name, **settings)


class ServiceTool(AsyncBaseTool):  # type: ignore[misc,unused-ignore]
    """The name of a service as a tool that is chosen and not called: it gives its input back."""

    def __init__(self, name: str, description: str) -> None:
        self.name = name
        self.description = description

    @classmethod
    def from_service_definition(cls, service_def: ServiceDefinition) -> Self:
        """Of a service as it describes itself."""
        return cls(service_def.service_name, service_def.description)

    @property
    def metadata(self) -> ToolMetadata:
        """What agents see of it."""
        return ToolMetadata(name=self.name, description=self.description)

    def call(self, input: str) -> ToolOutput:
        """Give the input back."""
        return ToolOutput(content=input, tool_name=self.name, raw_input={"input": input}, raw_output=input)

    async def acall(self, input: str) -> ToolOutput:
        """The same."""
        return self.call(input)


class ModuleType(str, Enum):
    """What stands behind a component."""

    AGENT = "agent"
    COMPONENT = "component"


class ServiceComponent(BaseModel):
    """The place of a service in a pipeline that an orchestrator reads: its name, and what it is."""

    name: str
    description: str
    module_type: ModuleType = ModuleType.AGENT

    @classmethod
    def from_service_definition(
        cls, service_def: ServiceDefinition, input_keys: Any = None, module_type: ModuleType = ModuleType.AGENT
    ) -> Self:
        """Of a service as it describes itself."""
        del input_keys
        return cls(name=service_def.service_name, description=service_def.description, module_type=module_type)

    @classmethod
    def from_component_service(cls, component_service: Any) -> Self:
        """Of a component that is served."""
        return cls.from_service_definition(component_service.service_definition, module_type=ModuleType.COMPONENT)


def _schema_class(schema: dict[str, Any]) -> type[BaseModel]:
    """A JSON Schema as llama-index takes schemas: a class that tells it."""

    class Arguments(BaseModel, extra="allow"):
        @classmethod
        def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
            del args, kwargs
            return schema

    return Arguments
