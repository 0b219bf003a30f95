"""Tools as one service: functions, and objects like those of the tool classes of llama-index, called by name.

A step is either a tool call of an agent (`NEW_TOOL_CALL`) or a task that names a tool. How arguments are checked is in
`arguments`; how a function runs is in `function`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from pydantic import ValidationError

from llama_deploy._lazy import published_names
from llama_deploy.errors import ArgumentsError, SettingError, ToolUnknownError
from llama_deploy.services.base import Service, StepContext
from llama_deploy.services.function import FunctionService
from llama_deploy.services.keeping import result_of
from llama_deploy.types import (
    ActionTypes,
    ChatMessage,
    MessageRole,
    ServiceDefinition,
    TaskResult,
    ToolCall,
    ToolCallResult,
)


class _Tool(Protocol):
    """One tool of the service."""

    name: str
    description: str
    schema: dict[str, Any]

    async def call(self, args: list[Any], kwargs: dict[str, Any], context: StepContext) -> Any: ...


class _FunctionTool:
    """A function as a tool."""

    def __init__(self, function: Any) -> None:
        self._service = function if isinstance(function, FunctionService) else FunctionService(function)
        self._arguments = self._service.prepare()
        self.name = self._service.definition.service_name
        self.description = self._service.definition.description
        self.schema = self._arguments.schema

    async def call(self, args: list[Any], kwargs: dict[str, Any], context: StepContext) -> Any:
        filled_args, filled_kwargs = self._arguments.from_list(args, kwargs, context)
        return await self._service.invoke(filled_args, filled_kwargs, context)


class _ObjectTool:
    """An object with `metadata` (name, description, fn_schema) and `acall`, as llama-index has them."""

    def __init__(self, tool: Any) -> None:
        self._tool = tool
        self._model = getattr(tool.metadata, "fn_schema", None)
        self.name = str(tool.metadata.name)
        self.description = str(tool.metadata.description or "")
        self.schema = self._model.model_json_schema() if self._model is not None else {"type": "object"}

    async def call(self, args: list[Any], kwargs: dict[str, Any], context: StepContext) -> Any:
        del context  # such tools know nothing of steps
        if self._model is not None and not args:
            try:
                self._model.model_validate(kwargs)
            except ValidationError as error:
                raise ArgumentsError(
                    f"the arguments do not fit the tool `{self.name}`", why=str(error), schema=self.schema
                ) from error
        output = await self._tool.acall(*args, **kwargs)
        return output.raw_output if hasattr(output, "raw_output") else output


class PlainToolService(Service):
    """Tools, called by name: `ToolService`, which takes the published arguments as well.

    Answers a `NEW_TOOL_CALL` with the fields of a `ToolCallResult`, and a task whose input is
    `{"tool": name, "args": {...}}` with what the tool returned. `tool_name` may be written for `tool`, and `args` may
    be a list of positional arguments. A parameter annotated `ServiceContext` is filled in, as in a function.
    """

    def __init__(
        self,
        tools: Iterable[Any],
        *,
        name: str = "tools",
        description: str | None = None,
        concurrency: int = 8,
        run_timeout_s: float = 600.0,
    ) -> None:
        """`tools` are functions and tool objects. Raises `SettingError` for others, and for a name used twice."""
        self._tools: dict[str, _Tool] = {}
        for tool in map(_adapt, tools):
            if tool.name in self._tools:
                raise SettingError(f"two tools of `{name}` are named `{tool.name}`", fix="rename one of them")
            self._tools[tool.name] = tool
        self.definition = ServiceDefinition(
            service_name=name,
            description=description or f"Tools: {', '.join(self._tools)}.",
            kind="tool",
            input_schema=_input_schema(self._tools.values()),
            output_schema={},
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
        )

    async def run(self, context: StepContext) -> TaskResult:
        """Call the tool. Raises `ToolUnknownError`, `ArgumentsError`, and what the tool raises."""
        if context.action == ActionTypes.NEW_TOOL_CALL.value:
            return await self._answer_call(context)
        request = _read_request(context)
        tool = self._find(request.pop("tool", None) or request.pop("tool_name", None))
        args, kwargs = _split_arguments(tool.name, request)
        return await result_of(await tool.call(args, kwargs, context), context)

    async def _answer_call(self, context: StepContext) -> TaskResult:
        try:
            call = ToolCall.model_validate(context.data)
        except ValidationError as error:
            raise ArgumentsError("the message is not a tool call", why=str(error)) from error
        bundle = call.tool_call_bundle
        tool = self._find(bundle.tool_name)
        text = (await result_of(await tool.call(bundle.tool_args, bundle.tool_kwargs, context), context)).result
        message = ChatMessage(
            role=MessageRole.TOOL, content=text, additional_kwargs={"name": tool.name, "tool_call_id": call.id_}
        )
        answer = ToolCallResult(id_=call.id_, tool_message=message, result=text)
        return TaskResult(task_id="", history=[], result=text, kind="json", value=answer.model_dump(mode="json"))

    def _find(self, name: Any) -> _Tool:
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            known = ", ".join(self._tools) or "none"
            raise ToolUnknownError(
                f"`{self.definition.service_name}` has no tool {name!r}" if name else "the input names no tool",
                why=f"its tools: {known}",
                fix='give {"tool": NAME, "args": {...}}',
                known=list(self._tools),
            )
        return tool


def _adapt(tool: Any) -> _Tool:
    if hasattr(tool, "metadata") and hasattr(tool.metadata, "name") and callable(getattr(tool, "acall", None)):
        return _ObjectTool(tool)
    if isinstance(tool, FunctionService) or (callable(tool) and not inspect.isclass(tool)):
        return _FunctionTool(tool)
    raise SettingError(
        f"an object of type {type(tool).__qualname__} is not a tool",
        fix="give a function, or an object with `metadata` and `acall`",
    )


def _read_request(context: StepContext) -> dict[str, Any]:
    """The named tool and its arguments, from a task's input or from the message itself."""
    request: Any = dict(context.data)
    if isinstance(context.data.get("task"), dict):
        try:
            request = msgspec.json.decode(context.input)
        except msgspec.DecodeError:
            request = None
    if not isinstance(request, dict):
        raise ArgumentsError("the input is not a JSON object", fix='give {"tool": NAME, "args": {...}}')
    return request


def _split_arguments(name: str, request: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    given = request.pop("args", {})
    if request:
        unknown = ", ".join(sorted(request))
        raise ArgumentsError(f"the input has unknown keys: {unknown}", fix='give {"tool": NAME, "args": {...}}')
    if isinstance(given, dict):
        return [], given
    if isinstance(given, list):
        return given, {}
    raise ArgumentsError(
        f"the arguments of the tool `{name}` are {json.dumps(given)[:80]}",
        fix="give an object, or a list of them in order",
    )


def _input_schema(tools: Iterable[_Tool]) -> dict[str, Any]:
    """One schema of all tools; the definitions of each are moved to its root, under the tool's name."""
    definitions: dict[str, Any] = {}
    variants = []
    for tool in tools:

        def rename(name: str, prefix: str = tool.name) -> str:
            return f"{prefix}.{name}"

        schema = _with_refs(tool.schema, rename)
        definitions |= {rename(name): one for name, one in schema.pop("$defs", {}).items()}
        variants.append(
            {
                "title": tool.name,
                "description": tool.description,
                "type": "object",
                "properties": {"tool": {"const": tool.name}, "args": schema},
                "required": ["tool"] + (["args"] if schema.get("required") else []),
            }
        )
    return {"oneOf": variants} | ({"$defs": definitions} if definitions else {})


def _with_refs(schema: Any, rename: Callable[[str], str]) -> Any:
    """A copy of `schema` in which every `#/$defs/NAME` is renamed."""
    if isinstance(schema, dict):
        copied = {key: _with_refs(value, rename) for key, value in schema.items()}
        if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#/$defs/"):
            copied["$ref"] = f"#/$defs/{rename(ref.removeprefix('#/$defs/'))}"
        return copied
    return [_with_refs(item, rename) for item in schema] if isinstance(schema, list) else schema


if TYPE_CHECKING:
    ToolService = PlainToolService
else:
    __getattr__, __dir__ = published_names(__name__)
