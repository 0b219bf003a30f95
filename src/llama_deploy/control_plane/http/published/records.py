"""What the published routes read and show: sessions, tasks, results, streams and events in the published form.

Everything comes from the control plane's own views and records; nothing is kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError

from llama_deploy.control_plane.http import waiting
from llama_deploy.control_plane.http.lines import HEADERS, NDJSON, EndlessResponse
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.records import decode_record
from llama_deploy.control_plane.refusals import refuse_origin
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import (
    InvalidRequestError,
    NoInputExpectedError,
    SessionNotFoundError,
    ShuttingDownError,
    TaskNotFoundError,
)
from llama_deploy.messages.stream_events import published_event
from llama_deploy.state_stores.base import TaskFilter
from llama_deploy.types import EventDefinition, SessionDefinition, TaskDefinition, TaskResult

RESULT_WAIT_S = 0.5
"""How long a request for a result waits for it. Published clients ask, sleep for half a second and ask again: what is
done meanwhile is answered when it is done, and a client that only looks is not kept long."""

LIST_ITEMS_MAX = 1_000
"""The published lists have no pages: they end after so many items, the newest first ones."""

_RUN_WAIT_S = 86_400.0
_ATTEMPT_MARKER = frozenset({"llama_deploy", "step_id", "attempt"})
"""The keys of the event with which a stream says that content may come again: published readers know nothing of it."""


Model = TypeVar("Model", bound=BaseModel)


def read(model: type[Model], body: Any) -> Model:
    """A body as the published model that it is. Raises `InvalidRequestError`."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors())
        raise InvalidRequestError(f"the body is not a {model.__name__}", why=found) from error


async def check_session(plane: ControlPlane, session_id: str) -> None:
    """Raise `SessionNotFoundError` for a session that is not recorded."""
    session = plane.engine.cache.sessions.get(session_id)
    if session is not None and session.recorded:
        return
    if await plane.store.load_session(session_id) is None:
        raise SessionNotFoundError(f"there is no session {session_id!r}", fix="POST /sessions/create makes one")


async def find_task(plane: ControlPlane, task_id: str, session_id: str | None) -> TaskEntry:
    """A task, of this session where one is named. Raises `TaskNotFoundError`."""
    entry = await plane.engine.cache.get(task_id)
    if session_id and entry.definition.session_id not in (None, session_id):
        raise TaskNotFoundError(f"session {session_id!r} has no task {task_id!r}")
    return entry


def is_no_id(task_id: str) -> bool:
    """Whether this is no id of a task, but what a client of 0.2 takes for one: the refusal of the task, as a mapping.

    It asks for the result of that; told that there is none yet, it would ask until its time is over.
    """
    return task_id.startswith("{")


async def submit(plane: ControlPlane, definition: TaskDefinition, session_id: str | None) -> TaskEntry:
    """Record a task of a session. Raises what `/v1/tasks` raises, and `SessionNotFoundError`."""
    refuse_origin(definition)
    definition.session_id = session_id
    if session_id is not None:
        await check_session(plane, session_id)
    return await plane.engine.submissions.submit_and_wait(definition)


async def result_of(request: Request, plane: ControlPlane, entry: TaskEntry) -> TaskResult | None:
    """The outcome, if there is one by now or soon."""
    return (await plane.views.result(await waiting.ended(request, plane, entry, RESULT_WAIT_S))).result


async def result_in_the_end(request: Request, plane: ControlPlane, entry: TaskEntry) -> TaskResult:
    """The outcome, whenever it comes. Raises `ShuttingDownError` when the server stops first."""
    entry = await waiting.ended(request, plane, entry, _RUN_WAIT_S)
    result = (await plane.views.result(entry)).result
    if result is None:
        raise ShuttingDownError("the control plane is stopping", fix="ask for the result when it is back: it is kept")
    return result


async def tasks_of(plane: ControlPlane, session_id: str | None = None) -> list[TaskDefinition]:
    """What was submitted, in that order; the newest `LIST_ITEMS_MAX` of it."""
    rows = (await plane.store.list_tasks(TaskFilter(session_id=session_id), limit=LIST_ITEMS_MAX)).rows
    found = await asyncio.gather(*(_definition(plane, row.task_id) for row in reversed(rows)))
    return [definition for definition in found if definition is not None]


async def _definition(plane: ControlPlane, task_id: str) -> TaskDefinition | None:
    """What was submitted as this task; `None` where it was removed meanwhile."""
    entry = plane.engine.cache.tasks.get(task_id)
    if entry is not None:
        return entry.definition
    history = await plane.engine.contents.history(task_id, after=0, limit=1)
    if not history:
        return None
    return TaskDefinition.model_validate(msgspec.json.decode(bytes(decode_record(history[0].data).definition)))


async def session_definition(plane: ControlPlane, session_id: str) -> SessionDefinition:
    """A session with its tasks and its state. Raises `SessionNotFoundError`."""
    state = await plane.views.session_state(session_id)
    rows = (await plane.store.list_tasks(TaskFilter(session_id=session_id), limit=LIST_ITEMS_MAX)).rows
    return SessionDefinition(session_id=session_id, task_ids=[row.task_id for row in reversed(rows)], state=state)


async def sessions(plane: ControlPlane) -> list[SessionDefinition]:
    """The newest sessions; what is erased meanwhile is left out."""
    found: list[SessionDefinition] = []
    for row in (await plane.store.list_sessions(limit=LIST_ITEMS_MAX)).rows:
        with contextlib.suppress(SessionNotFoundError):
            found.append(await session_definition(plane, row.session_id))
    return found


def stream_of(plane: ControlPlane, entry: TaskEntry) -> StreamingResponse:
    """The events of a task as published: one JSON object a line, as they are committed, until the task ends."""

    async def lines() -> AsyncIterator[bytes]:
        async for _, events in plane.engine.streams.follow(entry):
            for event in events:
                line = _line(msgspec.json.decode(event))
                if line is not None:
                    yield line

    return EndlessResponse(lines(), media_type=NDJSON, headers=HEADERS)


def _line(event: Any) -> bytes | None:
    """An event as published readers take it, always an object; `None` for what they know nothing of."""
    if isinstance(event, dict) and event.keys() == _ATTEMPT_MARKER:
        return None
    shown = published_event(event)
    return msgspec.json.encode(shown if isinstance(shown, dict) else {"value": shown}) + b"\n"


async def send_event(plane: ControlPlane, entry: TaskEntry, definition: EventDefinition, *, by: str) -> None:
    """Record an event for the step of a task that its service works on, and who sent it.

    Raises `NoInputExpectedError`.
    """
    steps = [step.step_id for step in entry.open.values() if step.service == definition.service_id]
    if not steps and not entry.final:
        raise NoInputExpectedError(
            f"service {definition.service_id!r} has no step of task {entry.row.task_id}",
            why="services at work: " + (", ".join(sorted({step.service for step in entry.open.values()})) or "none"),
        )
    value = {"event": _event(definition.event_obj_str)}
    await plane.signals.send_input(entry.row.task_id, value, step_id=steps[0] if steps else None, by=by)


def _event(text: str) -> Any:
    """The event that a published client has serialised.

    A client's own `__main__`, and the places where llama-index once had its events, mean nothing to the service: an
    event from there is known by its bare name.
    """
    try:
        event = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    if isinstance(event, dict) and isinstance(name := event.get("qualified_name"), str):
        module, _, bare = name.rpartition(".")
        fields = event.get("value")
        if isinstance(fields, dict) and (module == "__main__" or module.startswith("llama_index.")):
            return {"type": bare, **fields}
    return event
