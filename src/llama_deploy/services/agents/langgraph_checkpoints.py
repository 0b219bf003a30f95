"""The checkpoints of one LangGraph run as JSON, to be stored with a step that waits.

Only the newest checkpoint of each graph (the outer one, and those within it) is kept, which is all that a run needs to
go on. Values are written by the library's own serializer, which is allowed to make objects of the classes that the
graph's state names and of no others, so that nothing stored can have a module imported.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.pregel import Pregel
from pydantic import BaseModel

from llama_deploy.errors import NonRetryableError
from llama_deploy.services.agents.hosted import cannot_resume


class Checkpoints:
    """Where one run of `graph` keeps its checkpoints."""

    def __init__(self, graph: Pregel[Any, Any, Any, Any], state_types: Iterable[type] = ()) -> None:
        self._serializer = JsonPlusSerializer(allowed_msgpack_modules=[*_types_of(graph), *state_types])
        self.saver = InMemorySaver(serde=self._serializer)

    def saved(self, thread: str) -> list[dict[str, Any]]:
        """The newest checkpoints as JSON. Raises `NonRetryableError` for state that could not be read back."""
        newest: dict[str, Any] = {}
        for one in self._all(thread):
            namespace = one.config["configurable"].get("checkpoint_ns", "")
            known = newest.get(namespace)
            if known is None or one.checkpoint["id"] > known.checkpoint["id"]:
                newest[namespace] = one
        return [
            {
                "namespace": namespace,
                "parent": ((one.parent_config or {}).get("configurable") or {}).get("checkpoint_id"),
                "checkpoint": self._write(one.checkpoint),
                "metadata": self._write(dict(one.metadata)),
                "writes": [[task, channel, self._write(value)] for task, channel, value in one.pending_writes or ()],
            }
            for namespace, one in newest.items()
        ]

    async def restore(self, thread: str, saved: Iterable[Mapping[str, Any]]) -> None:
        """Put what `saved` returned in place."""
        try:
            for one in saved:
                await self._restore(thread, one)
        except (ValueError, KeyError, TypeError) as error:
            raise cannot_resume(error) from error

    async def _restore(self, thread: str, one: Mapping[str, Any]) -> None:
        checkpoint = self._read(one["checkpoint"])
        where: dict[str, Any] = {"thread_id": thread, "checkpoint_ns": one["namespace"]}
        if one["parent"] is not None:
            where["checkpoint_id"] = one["parent"]
        put = await self.saver.aput(
            {"configurable": where}, checkpoint, self._read(one["metadata"]), checkpoint["channel_versions"]
        )
        by_task: dict[str, list[tuple[str, Any]]] = {}
        for task, channel, value in one["writes"]:
            by_task.setdefault(task, []).append((channel, self._read(value)))
        for task, writes in by_task.items():
            await self.saver.aput_writes(put, writes, task)

    def _all(self, thread: str) -> list[CheckpointTuple]:
        """Every checkpoint, read back: a class that is not allowed would come as plain data, without an error."""
        blocked: set[str] = set()
        here = threading.get_ident()

        def note(event: SerdeEvent) -> None:
            if threading.get_ident() == here and event["kind"] != "msgpack_unregistered_allowed":
                blocked.add(f"{event['module']}.{event['name']}")

        forget = register_serde_event_listener(note)
        try:
            found = list(self.saver.list({"configurable": {"thread_id": thread}}))
        finally:
            forget()
        if blocked:
            raise NonRetryableError(
                "the state of the graph cannot be stored while it waits",
                why=f"its annotations do not name {', '.join(sorted(blocked))}",
                fix="annotate the state with it, or give LangGraphService(graph, state_types=[...])",
            )
        return found

    def _write(self, value: Any) -> list[str]:
        kind, content = self._serializer.dumps_typed(value)
        return [kind, base64.b64encode(content).decode()]

    def _read(self, written: list[str]) -> Any:
        kind, content = written
        return self._serializer.loads_typed((kind, base64.b64decode(content)))


def _types_of(graph: Pregel[Any, Any, Any, Any]) -> set[type]:
    """Every class that the annotations of the graph's state, and of what is in it, name; of graphs within it, too."""
    found: set[type] = set()
    graphs: list[Any] = [graph, *(inner for _, inner in graph.get_subgraphs(recurse=True))]
    for one in graphs:
        builder = getattr(one, "builder", None)
        for name in ("state_schema", "input_schema", "output_schema", "context_schema"):
            _collect(getattr(builder, name, None), found)
        for schema in getattr(builder, "schemas", ()):
            _collect(schema, found)
        for channel in one.channels.values():
            _collect(getattr(channel, "ValueType", None), found)
    return found


def _collect(hint: Any, found: set[type]) -> None:
    for part in get_args(hint):
        _collect(part, found)
    if not isinstance(hint, type) or hint in found or hint.__module__ in ("builtins", "typing"):
        return
    found.add(hint)
    if is_dataclass(hint) or issubclass(hint, BaseModel) or hasattr(hint, "__annotations__"):
        try:
            hints = get_type_hints(hint)
        except (NameError, TypeError):  # an annotation that names nothing names no class
            return
        for part in hints.values():
            _collect(part, found)
