"""The events of a workflow as JSON and back, and the one place that decides which classes a name may stand for.

A name that came from outside, or from a stored snapshot, is only ever looked up among classes that the workflow's own
code has loaded already; nothing is imported because of a name.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError
from workflows import Workflow
from workflows.context.serializers import JsonSerializer
from workflows.context.state_store import DictState
from workflows.events import Event, HumanResponseEvent

from llama_deploy.errors import ArgumentsError, ResultNotSerialisableError
from llama_deploy.messages.stream_events import EVENT_OMITTED_KEY, EVENT_TYPE_KEY
from llama_deploy.services.agent_memory import Memories, memory_from
from llama_deploy.services.base import StepContext
from llama_deploy.services.encoding import encode

_ENGINE_PACKAGES = ("workflows",)
_TYPE_KEYS = (EVENT_TYPE_KEY, "qualified_name", "type")
_PLAIN = frozenset({str, int, float, bool, type(None), dict, list})
_MEMORY_MARK = "__is_memory"
"""Marks the form of an agent's memory in a saved context."""


def qualified_name(cls: type[Any]) -> str:
    """`module.QualifiedName` of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def event_fields(event: Event) -> dict[str, Any]:
    """The event's fields, declared and dynamic ones alike. Raises `ValueError` where one has no JSON form."""
    fields = event.model_dump(mode="json")
    fields |= fields.pop("_data", {})
    return fields


def stream_event(event: Event, context: StepContext) -> dict[str, Any]:
    """Append the event to the task's stream: its fields and its type. Returns what was appended.

    A field without a JSON form is left out and named under `$omitted`: progress that cannot be shown in full is no
    reason to fail a run.
    """
    name = qualified_name(type(event))
    try:
        fields = event_fields(event) | {EVENT_TYPE_KEY: name}
        context.stream(fields)
    except (ValueError, TypeError, ResultNotSerialisableError):
        fields, omitted = _fields_one_by_one(event)
        fields |= {EVENT_TYPE_KEY: name, EVENT_OMITTED_KEY: omitted}
        context.stream(fields)
    return fields


def _fields_one_by_one(event: Event) -> tuple[dict[str, Any], list[str]]:
    values = {name: getattr(event, name) for name in type(event).model_fields} | dict(event.items())
    if (result := getattr(event, "result", None)) is not None:
        values["result"] = result
    fields: dict[str, Any] = {}
    omitted: list[str] = []
    for name, value in values.items():
        try:
            fields[name] = msgspec.json.decode(encode(value))
        except (ValueError, TypeError, ResultNotSerialisableError):
            omitted.append(name)
    return fields, omitted


class EventTypes:
    """The classes that a workflow's names may stand for."""

    def __init__(self, workflow: Workflow, allowed: Collection[type[Any]] = ()) -> None:
        """`allowed` are further classes that the workflow's context may hold."""
        self._allowed = frozenset(allowed)
        self._packages = {cls.__module__.partition(".")[0] for cls in type(workflow).__mro__} - {"builtins", "typing"}
        declared: list[type[Event]] = [*workflow.events, HumanResponseEvent]
        modules = {
            cls.__module__ for cls in type(workflow).__mro__ if issubclass(cls, Workflow) and cls is not Workflow
        }
        visible: list[type[Event]] = [
            value
            for module in modules
            for value in vars(sys.modules.get(module, object)).values()
            if isinstance(value, type) and issubclass(value, Event)
        ]
        self._by_name: dict[str, type[Any]] = {}
        self._by_short_name: dict[str, list[type[Event]]] = {}
        for cls in dict.fromkeys([*declared, *visible]):
            self._by_name[f"{cls.__module__}.{cls.__name__}"] = cls
            self._by_name[qualified_name(cls)] = cls
            self._by_short_name.setdefault(cls.__name__, []).append(cls)
        for extra in allowed:
            self._by_name[f"{extra.__module__}.{extra.__name__}"] = self._by_name[qualified_name(extra)] = extra
        responses = [cls for cls in workflow.events if issubclass(cls, HumanResponseEvent)]
        self.response: type[Event] = responses[0] if len(responses) == 1 else HumanResponseEvent
        """What a person's plain answer becomes: the workflow's one response event, else `HumanResponseEvent`."""

    def allows(self, cls: type[Any]) -> bool:
        """Whether the class was allowed by whoever serves the workflow: its own JSON form is taken to be whole."""
        return cls in self._allowed

    def find(self, name: str) -> type[Any]:
        """The loaded class of this name, for a stored snapshot. Raises `ValueError` for any other name."""
        if (known := self._by_name.get(name)) is not None:
            return known
        module_name, _, class_name = name.rpartition(".")
        package = module_name.partition(".")[0]
        found = getattr(sys.modules.get(module_name), class_name, None)
        if isinstance(found, type) and package in (*self._packages, *_ENGINE_PACKAGES) and _is_data(found):
            return found
        raise ValueError(f"{name} is not a class that this workflow's code has loaded")

    def find_input(self, name: str) -> type[Event]:
        """The event class that a sender means, by its qualified name or, where that is unique, its bare name."""
        known = self._by_name.get(name)
        if known is not None and issubclass(known, Event):
            return known
        candidates = self._by_short_name.get(name, [])
        if len(candidates) == 1:
            return candidates[0]
        names = sorted({qualified_name(cls) for cls in self._by_name.values()})
        raise ArgumentsError(
            f"the workflow has no event {name!r}" if not candidates else f"the workflow has several events {name!r}",
            why=f"its events: {', '.join(names)}",
            fix="name one of them",
        )

    def read_input(self, value: Any) -> Event:
        """The event that an input stands for. Raises `ArgumentsError`.

        `{"event": {"type": NAME, ...fields}}` is that event; the engine's own serialised form, also as text, is taken
        for the inner object. Any other value is a person's answer to what the workflow asked.
        """
        if isinstance(value, dict) and value.keys() == {"event"}:
            inner = value["event"]
            if isinstance(inner, str):
                try:
                    inner = msgspec.json.decode(inner)
                except msgspec.DecodeError:
                    return self._read_answer(value)
            if isinstance(inner, dict) and any(isinstance(inner.get(key), str) for key in _TYPE_KEYS):
                return self._read_event(inner)
        return self._read_answer(value)

    def _read_event(self, given: dict[str, Any]) -> Event:
        key = next(key for key in _TYPE_KEYS if isinstance(given.get(key), str))
        cls = self.find_input(given[key])
        fields = given.get("value") if key == "qualified_name" else {k: v for k, v in given.items() if k != key}
        if not isinstance(fields, dict):
            raise ArgumentsError(f"the fields of the event {given[key]!r} are not an object")
        dynamic = fields.get("_data")
        return _make(cls, {**fields, **dynamic} if isinstance(dynamic, dict) else fields)

    def _read_answer(self, value: Any) -> Event:
        cls = self.response
        names = list(cls.model_fields)
        if cls is HumanResponseEvent or not names:
            return _make(cls, {"response": value})
        if isinstance(value, dict) and value.keys() <= set(names):
            return _make(cls, value)
        if len(names) == 1:
            return _make(cls, {names[0]: value})
        raise ArgumentsError(f"the answer does not fit {cls.__name__}", fix=f"give an object with: {', '.join(names)}")


def _make(cls: type[Event], fields: dict[str, Any]) -> Event:
    try:
        return cls(**{name: value for name, value in fields.items() if name != "_data"})
    except (ValidationError, TypeError) as error:
        raise ArgumentsError(f"the fields do not fit the event {cls.__name__}", why=str(error)) from error


def _is_data(cls: type[Any]) -> bool:
    """Whether a snapshot may hold values of the class: a pydantic model, or a component of llama-index."""
    return issubclass(cls, BaseModel) or callable(getattr(cls, "from_dict", None))


class SnapshotSerializer(JsonSerializer):
    """Values in a stored snapshot. JSON alone, and names are resolved by `EventTypes.find`, never by import."""

    def __init__(self, types: EventTypes) -> None:
        super().__init__()
        self._types = types
        self._memories = Memories()

    async def look_at(self, state: Any) -> None:
        """Call it before the context with this state is saved: what an agent remembers may have to be awaited."""
        if isinstance(state, DictState):
            await self._memories.look_at(list(state.values()))

    def serialize_value(self, value: Any) -> Any:
        """As the engine writes it, but for memories: theirs is a form that is whole, or none."""
        if type(value) not in _PLAIN and not self._types.allows(type(value)):
            form = self._memories.form_of(value)
            if form is not None:
                return {_MEMORY_MARK: True, "value": form}
        return super().serialize_value(value)

    def resolve_class(self, qualified_name: str) -> type[Any]:
        """Called by engines from 2.20 on, also for names in nested fields."""
        return self._types.find(qualified_name)

    def deserialize_value(self, data: Any) -> Any:
        """The value that `serialize_value` wrote; written out because earlier engines import names here."""
        if isinstance(data, list):
            return [self.deserialize_value(item) for item in data]
        if not isinstance(data, dict):
            return data
        if data.keys() == {_MEMORY_MARK, "value"}:
            return memory_from(data["value"])
        name = data.get("qualified_name")
        if not name or not (data.get("__is_pydantic") or data.get("__is_component")):
            return {key: self.deserialize_value(value) for key, value in data.items()}
        cls = self._types.find(name)
        with getattr(self, "validation_context", nullcontext)():
            return cls.model_validate(data["value"]) if data.get("__is_pydantic") else cls.from_dict(data["value"])


def check_names(snapshot: dict[str, Any], types: EventTypes) -> None:
    """Refuse a stored snapshot whose own names are not known: earlier engines import these whatever the serializer.

    Raises `ValueError`.
    """
    state = snapshot.get("state") or {}
    if "state_type" in state:
        types.find(f"{state.get('state_module')}.{state['state_type']}")
    for worker in (snapshot.get("workers") or {}).values():
        for waiter in worker.get("collected_waiters", ()):
            types.find(waiter["waiting_for_event"])


def check_values(saved: Any, serializer: SnapshotSerializer) -> None:
    """Refuse a stored snapshot of which a value cannot be made again: engines find that out only in mid-run.

    Raises `ValueError`.
    """
    if isinstance(saved, dict):
        for value in saved.values():
            check_values(value, serializer)
    elif isinstance(saved, list):
        for value in saved:
            check_values(value, serializer)
    elif isinstance(saved, str) and '"__is_' in saved:
        try:
            serializer.deserialize(saved)
        except (TypeError, KeyError, AttributeError) as error:  # what a class says to fields that do not fit it
            raise ValueError(f"{type(error).__name__}: {error}") from error


def check_complete(snapshot: dict[str, Any], state: Any) -> None:
    """Refuse a snapshot that leaves out a part of the run's state: the engine drops an agent's memory with a warning.

    Raises `ValueError`.
    """
    if isinstance(state, DictState):
        saved = ((snapshot.get("state") or {}).get("state_data") or {}).get("_data") or {}
        if lost := sorted(set(state.keys()) - saved.keys()):
            raise ValueError(f"its context holds what cannot be saved: {', '.join(lost)}")


def keeps_waiting_right(snapshot: dict[str, Any]) -> bool:
    """Whether the run can go on from the snapshot as it would have gone on here.

    The engine does not save the `requirements` of `wait_for_event`. It finds them again by running the step anew, but
    not for a wait that is over already: that one would then take any later event of its type for its own.
    """
    workers = (snapshot.get("workers") or {}).values()
    waiters = [waiter for worker in workers for waiter in worker.get("collected_waiters", ())]
    return not any(waiter.get("has_requirements") and waiter.get("resolved_event") for waiter in waiters)


def awaited_events(snapshot: dict[str, Any]) -> list[str] | None:
    """Names of the events that steps wait for, or None when the run can go on without any event from outside."""
    workers = (snapshot.get("workers") or {}).values()
    if not snapshot.get("is_running") or snapshot.get("deliveries"):
        return None
    if any(worker.get("queue") or worker.get("in_progress") for worker in workers):
        return None
    waiters = [waiter for worker in workers for waiter in worker.get("collected_waiters", ())]
    return [waiter["waiting_for_event"] for waiter in waiters if not waiter.get("resolved_event")]
