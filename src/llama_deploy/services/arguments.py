"""How a task's input becomes the arguments of a function, as its signature says.

Everything that can be known from the signature is built once, by `read_signature`: validator, JSON Schema, and the
refusal of signatures that no input could fill. Functions and tools share it. Calling the function is not done here.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, NoReturn, NotRequired, Union, Unpack

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
from typing_extensions import TypedDict  # pydantic does not read that of `typing` before Python 3.12

from llama_deploy.errors import ArgumentsError, ResultNotSerialisableError, SettingError
from llama_deploy.services.base import StepContext
from llama_deploy.services.results import result_from_value
from llama_deploy.types.artifacts import Artifact

_EMPTY = inspect.Parameter.empty
_NO_HINT: Any = object()

Filled = tuple[list[Any], dict[str, Any]]
"""What to call a function with: positional and keyword arguments."""


class UnresolvedAnnotationError(NameError):
    """An annotation names something that does not exist (yet); reading the signature later may succeed."""


class _JsonSchema(GenerateJsonSchema):
    """Defaults without a JSON form are left out of the schema without a warning."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012


class Arguments:
    """The parameters of one function, ready to be filled. Immutable and safe to use from any thread."""

    def __init__(self, label: str, parameters: list[inspect.Parameter], hints: Mapping[str, Any]) -> None:
        self._label = label
        self._context_names = tuple(p.name for p in parameters if _is_context(hints.get(p.name)))
        filled = [p for p in parameters if p.name not in self._context_names and p.kind is not p.VAR_KEYWORD]
        self._extras = _extras_adapter(label, parameters, hints)
        self._names = frozenset(p.name for p in filled)
        self.bytes_names = tuple(
            p.name for p in filled if p.kind is not p.POSITIONAL_ONLY and _takes_bytes(hints.get(p.name))
        )
        """Parameters of bytes, which take an artifact as well and are given its content."""
        self._adapter = _fields_adapter(label, filled, hints, open_ended=self._extras is not None)
        self._validate_json: Callable[[str], dict[str, Any]] = self._adapter.validator.validate_json
        self._positional = tuple((p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_ONLY)
        sole = _sole_parameter(filled)
        self._sole_name = sole.name if sole is not None else None
        self._sole_adapter = _adapter(label, sole.name, _field_type(sole, hints)) if sole is not None else None
        self._plain = not (self._context_names or self._positional or self._extras)
        self.schema = _input_schema(self._adapter, filled)
        """JSON Schema of the keyword arguments."""
        self._sole_takes_object = self._sole_adapter is not None and _takes_object(self._sole_adapter)

    def from_text(self, text: str, context: StepContext | None) -> Filled:
        """Positional and keyword arguments from a task's input.

        The input is a JSON object of keyword arguments. The one parameter that a function has (or needs) also takes
        any other JSON value, plain text, and, where its type is an object, that object itself. Empty input stands for
        no arguments where none are needed. Raises `ArgumentsError`.
        """
        try:
            values = self._validate_json(text)
        except ValidationError as error:
            values = self._from_other_text(text, error)
        return ([], values) if self._plain else self._arrange(values, context)

    def from_object(self, data: dict[str, Any], context: StepContext | None) -> Filled:
        """Positional and keyword arguments from decoded JSON. Raises `ArgumentsError`."""
        try:
            values = self._adapter.validate_python(data)
        except ValidationError as error:
            values = self._from_whole_object(data, error)
        return ([], values) if self._plain else self._arrange(values, context)

    def from_list(self, args: list[Any], kwargs: dict[str, Any], context: StepContext | None) -> Filled:
        """As `from_object`, with some arguments given by position. Raises `ArgumentsError`."""
        names = list(self.schema["properties"])
        if len(args) > len(names):
            self._refuse([("", f"at most {len(names)} arguments are taken, {len(args)} were given")])
        by_position = dict(zip(names, args, strict=False))
        if twice := by_position.keys() & kwargs.keys():
            self._refuse([(name, "given by position and by name") for name in sorted(twice)])
        return self.from_object({**by_position, **kwargs}, context)

    def _from_other_text(self, text: str, error: ValidationError) -> dict[str, Any]:
        """The input is not an object of our fields; `error` says why."""
        kind = error.errors(include_url=False, include_context=False, include_input=False)[0]["type"]
        if not text.strip() and (self._sole_name is None or not self.schema.get("required")):
            return self._nothing()
        if kind == "dict_type" and not self._names and text.strip() == "null":
            return self._nothing()
        if self._sole_adapter is None or self._sole_name is None:
            if kind == "json_invalid":
                self._refuse([("", "the input is not JSON")], error)
            self._refuse_validation(error)
        if kind not in ("json_invalid", "dict_type"):
            if not self._sole_takes_object:
                self._refuse_validation(error)
            return {self._sole_name: self._whole(functools.partial(self._sole_adapter.validate_json, text), error)}
        try:
            return {self._sole_name: self._sole_adapter.validate_json(text)}
        except ValidationError as json_error:
            try:
                return {self._sole_name: self._sole_adapter.validate_python(text)}
            except ValidationError as text_error:
                self._refuse_validation(text_error if kind == "json_invalid" else json_error, self._sole_name)

    def _from_whole_object(self, data: dict[str, Any], error: ValidationError) -> dict[str, Any]:
        if self._sole_adapter is None or self._sole_name is None or not self._sole_takes_object:
            self._refuse_validation(error)
        return {self._sole_name: self._whole(functools.partial(self._sole_adapter.validate_python, data), error)}

    def _whole(self, validate: Callable[[], Any], error: ValidationError) -> Any:
        """An object that did not fit as keyword arguments, taken as the one parameter itself."""
        try:
            return validate()
        except ValidationError as whole_error:
            by_name = any(self._sole_name == e["loc"][0] and e["type"] != "missing" for e in error.errors() if e["loc"])
            self._refuse_validation(error if by_name else whole_error)

    def _nothing(self) -> dict[str, Any]:
        """The arguments where none are given."""
        try:
            return self._validate_json("{}")
        except ValidationError as error:
            self._refuse_validation(error)

    def _arrange(self, values: dict[str, Any], context: StepContext | None) -> Filled:
        if self._extras is not None:
            extras = {name: values.pop(name) for name in list(values) if name not in self._names}
            if clash := extras.keys() & set(self._context_names):
                self._refuse([(name, "is filled in by the system") for name in sorted(clash)])
            try:
                values.update(self._extras.validate_python(extras))
            except ValidationError as error:
                self._refuse_validation(error)
        for name in self._context_names:
            values[name] = context
        return [values.pop(name, default) for name, default in self._positional], values

    def _refuse_validation(self, error: ValidationError, prefix: str = "") -> NoReturn:
        problems = []
        for found in error.errors(include_url=False, include_input=False):
            path = ".".join(str(part) for part in ((prefix,) if prefix else ()) + found["loc"])
            problems.append((path, self._describe(found["type"], path, found["msg"])))
        self._refuse(problems, error)

    def _describe(self, kind: str, path: str, message: str) -> str:
        if kind == "missing":
            return "is missing"
        if kind == "extra_forbidden":
            close = difflib.get_close_matches(path, self._names, n=1)
            return "is not a parameter" + (f"; did you mean `{close[0]}`?" if close else "")
        return message[:1].lower() + message[1:]

    def _refuse(self, problems: list[tuple[str, str]], cause: Exception | None = None) -> NoReturn:
        raise ArgumentsError(
            f"the input does not fit the parameters of `{self._label}`",
            why="; ".join(f"`{path}` {what}" if path else what for path, what in problems),
            fix=f"give a JSON object with: {self.fields() or 'nothing (it takes no arguments)'}",
            service=self._label,
            problems=[{"field": path, "problem": what} for path, what in problems],
            schema=self.schema,
        ) from cause

    def fields(self) -> str:
        """The parameters in words, as an error names them: `text (string), count (integer, optional)`."""
        required = self.schema.get("required", ())
        described = []
        for name, field in self.schema["properties"].items():
            kind = _type_in_words(field)
            described.append(f"{name} ({kind})" if name in required else f"{name} ({kind}, optional)")
        return ", ".join(described)


def read_signature(function: Callable[..., Any], label: str, local_names: Mapping[str, Any] | None = None) -> Arguments:
    """The arguments of `function`, named `label` in errors.

    Annotations may be strings; `local_names` are names of the scope that defined the function. Raises `SettingError`
    for a signature that no input can fill, and `UnresolvedAnnotationError` while an annotation names nothing.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"`{label}` cannot be a service: its parameters are not known",
            why=str(error),
            fix="wrap it in a function with annotated parameters",
        ) from error
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise SettingError(
                f"`{label}` cannot be a service: it takes `*{parameter.name}`",
                why="the input of a task names its arguments",
                fix=f"replace `*{parameter.name}` by a parameter `{parameter.name}: list[...]`",
            )
    if parameters and parameters[0].name in ("self", "cls") and parameters[0].annotation is _EMPTY:
        raise SettingError(
            f"`{label}` cannot be a service: it is a method, and no input can fill `{parameters[0].name}`",
            fix="make a service of the bound method instead: as_service(object.method)",
        )
    return Arguments(label, parameters, _hints(function, [p.name for p in parameters], local_names))


def return_schema(
    function: Callable[..., Any], local_names: Mapping[str, Any] | None = None, *, is_generator: bool = False
) -> dict[str, Any]:
    """JSON Schema of the result of `function`, by its annotation; `{}` (anything) where that is not known.

    The result of a generator is what it returns, or the list of what it yields.
    """
    try:
        hint = _hints(function, ["return"], local_names).get("return", _NO_HINT)
        if is_generator:
            yields, _, returns = (*(typing.get_args(hint) or (Any,)), None, None)[:3]
            hint = list[yields] if returns in (None, type(None), Any) else returns  # type: ignore[valid-type]
        if hint is _NO_HINT:
            return {}
        return TypeAdapter(hint).json_schema(mode="serialization", schema_generator=_JsonSchema)
    except (UnresolvedAnnotationError, PydanticUserError, TypeError):
        return {}


def _hints(function: Callable[..., Any], names: list[str], local_names: Mapping[str, Any] | None) -> dict[str, Any]:
    """The annotations of `function` as types, with their `Annotated` metadata."""
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not isinstance(target, type):
        target = type(target).__call__
    target = inspect.unwrap(target)
    annotations = {name: hint for name, hint in inspect.get_annotations(target).items() if name in names}
    scope = getattr(target, "__globals__", {})
    hints: dict[str, Any] = {}
    for name, hint in annotations.items():
        one = SimpleNamespace(__annotations__={name: hint})
        try:
            hints |= typing.get_type_hints(one, globalns=scope, localns=dict(local_names or {}), include_extras=True)
        except NameError as error:
            raise UnresolvedAnnotationError(f"the annotation of `{name}` is not resolvable: {error}") from error
    return hints


def _is_context(hint: Any) -> bool:
    """Whether a parameter asks for the context: `ServiceContext`, or `ServiceContext | None`."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (Union, UnionType):
        return any(_is_context(member) for member in typing.get_args(hint))
    return isinstance(hint, type) and issubclass(hint, StepContext)


def _takes_bytes(hint: Any) -> bool:
    """Whether a parameter wants binary data: `bytes`, or `bytes | None`."""
    return hint is bytes or (typing.get_origin(hint) in (Union, UnionType) and bytes in typing.get_args(hint))


def _field_type(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    hint = hints.get(parameter.name, Any)
    if _takes_bytes(hint) and parameter.kind is not parameter.POSITIONAL_ONLY:
        hint = Union[Artifact, hint]  # noqa: UP007 - a hint is a value here
    return Annotated[hint, parameter.default] if isinstance(parameter.default, FieldInfo) else hint


def _is_required(parameter: inspect.Parameter) -> bool:
    if isinstance(parameter.default, FieldInfo):
        return parameter.default.is_required()
    return parameter.default is _EMPTY


def _fields_adapter(
    label: str, filled: list[inspect.Parameter], hints: Mapping[str, Any], *, open_ended: bool
) -> TypeAdapter[Any]:
    """The validator of the keyword arguments; parameters that are not given are left out of what it returns."""
    fields: dict[str, Any] = {}
    for parameter in filled:
        kind = _field_type(parameter, hints)
        _adapter(label, parameter.name, kind)  # one by one first: an error then names the parameter
        fields[parameter.name] = kind if _is_required(parameter) else NotRequired[kind]
    make_record: Any = TypedDict
    record = make_record(label, fields)
    record.__pydantic_config__ = ConfigDict(extra="allow" if open_ended else "forbid")
    return _adapter(label, "", record)


def _adapter(label: str, name: str, kind: Any) -> TypeAdapter[Any]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        adapter.json_schema(schema_generator=_JsonSchema)
    except NameError as error:
        raise UnresolvedAnnotationError(f"the annotation of `{name}` is not resolvable: {error}") from error
    except (PydanticUserError, TypeError) as error:
        raise SettingError(
            f"`{label}` cannot be a service: no JSON can become its parameter `{name}`",
            why=str(error).splitlines()[0],
            fix="annotate it with JSON types, a pydantic model or a dataclass, or make the object inside the function",
        ) from error
    return adapter


def _extras_adapter(
    label: str, parameters: list[inspect.Parameter], hints: Mapping[str, Any]
) -> TypeAdapter[Any] | None:
    """The validator of what goes into `**kwargs`, or None where there is no such parameter."""
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            hint = hints.get(parameter.name, Any)
            kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Unpack else dict[str, hint]  # type: ignore[valid-type]
            return _adapter(label, parameter.name, kind)
    return None


def _sole_parameter(filled: list[inspect.Parameter]) -> inspect.Parameter | None:
    """The parameter that takes an input which is not an object of arguments: the only one, or the only required one."""
    if len(filled) == 1:
        return filled[0]
    required = [p for p in filled if _is_required(p)]
    return required[0] if len(required) == 1 else None


def _input_schema(adapter: TypeAdapter[Any], filled: list[inspect.Parameter]) -> dict[str, Any]:
    schema = adapter.json_schema(schema_generator=_JsonSchema)
    properties = schema.setdefault("properties", {})
    for parameter in filled:
        if parameter.default is _EMPTY or isinstance(parameter.default, FieldInfo):
            continue
        try:
            properties[parameter.name]["default"] = result_from_value(parameter.default).output
        except ResultNotSerialisableError:
            continue  # a default that JSON cannot write is still applied by the function itself
    return schema


def _takes_object(adapter: TypeAdapter[Any]) -> bool:
    schema = adapter.json_schema(schema_generator=_JsonSchema)
    variants = schema.get("anyOf", [schema])
    definitions = schema.get("$defs", {})
    resolved = (definitions.get(str(v.get("$ref", "")).rpartition("/")[2], v) for v in variants)
    return any(v.get("type") == "object" for v in resolved)


def _type_in_words(field: Mapping[str, Any]) -> str:
    if "type" in field:
        return str(field["type"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field or "const" in field:
        return " or ".join(repr(value) for value in field.get("enum", [field.get("const")]))
    if variants := field.get("anyOf"):
        return " or ".join(_type_in_words(variant) for variant in variants)
    return "any value"
