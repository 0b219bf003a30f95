"""The client: submit tasks, wait for them, read their streams, look at what there is.

What programs do all the time (run, submit, wait, stream) goes over the one connection of
`llama_deploy.connections.connection`; what they do now and then goes over the HTTP API. `SyncClient` has the same
methods for programs without an event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

import msgspec
from msgspec import UNSET

from llama_deploy._lazy import published_names
from llama_deploy.client.artifact_calls import ArtifactCalls
from llama_deploy.client.control_calls import ControlCalls
from llama_deploy.client.data_calls import DataCalls
from llama_deploy.client.http_calls import segment, view_of
from llama_deploy.client.outcomes import output_of, result_of
from llama_deploy.client.published import PublishedArguments, PublishedParts, settings_of
from llama_deploy.client.service_calls import ServiceCalls
from llama_deploy.client.time_calls import TimeCalls
from llama_deploy.connections.connection import Connection
from llama_deploy.connections.http_requests import REQUEST_TIMEOUT_S
from llama_deploy.connections.problems import unexpected
from llama_deploy.connections.several import transport_to
from llama_deploy.connections.transport import Transport
from llama_deploy.errors import InvalidRequestError, LlamaDeployError
from llama_deploy.messages.submissions import definition, input_text
from llama_deploy.messages.values import encode_json
from llama_deploy.runtime.credentials import Credentials, known_by
from llama_deploy.types import (
    HistoryEntry,
    HistoryPage,
    SessionPage,
    SessionView,
    TaskOptions,
    TaskPage,
    TaskResult,
    TaskState,
    TaskView,
    generate_id,
)
from llama_deploy.types.artifacts import MARK_BYTES, revived

RECONNECT_TIMEOUT_S = 60.0
"""For how long a lost connection is tried to be made again by default."""
PAGE_ITEMS = 100
"""Items per page when everything is listed."""

Output = TypeVar("Output")

_decode_json = msgspec.json.Decoder().decode


class StreamEvent(msgspec.Struct, frozen=True):
    """One recorded event of a task's stream."""

    index: int
    """The event's number within the task, from 0, without a gap."""
    data: Any
    """The event as JSON types."""


class Client(ControlCalls, DataCalls, ServiceCalls, TimeCalls, ArtifactCalls, PublishedParts):
    """A client of one control plane, for one event loop.

    Use it with `async with`, or call `close`. Nothing connects before the first call that needs it; that call raises
    `CannotReachError` at once when nothing answers at `url`. Later losses are mended for `reconnect_timeout_s`
    seconds without a caller noticing: no submission is made twice, no stream event is missed or repeated. When the
    time is over, every call that waits raises `ConnectionLostError`; the tasks go on.

    `url` is `$LLAMA_DEPLOY_CONTROL_PLANE_URL` by default, or else http://127.0.0.1:8000. It may name several control
    planes that share one store: a list, or text with commas between them. The client begins with one of them by chance,
    and goes on with another one when that is gone or stops.

    `timeout_s` is how long calls wait, in seconds (600), unless they say otherwise; `math.inf` waits for ever. A
    timeout raises `WaitTimeoutError` that names the task, and never stops it. A submission that is refused because as
    much waits as may (`QueueFullError`) is repeated when the control plane says, for as long as the call may wait; with
    `wait_when_full=False` it is raised at once.

    `token` is shown to a control plane that asks for one; `credentials` says more (a file of a token, authorities to
    believe, a certificate). What neither says comes from the environment (`LLAMA_DEPLOY_TOKEN`, ...).
    `request_timeout_s` is how long one request over HTTP may go without an answer (`NoAnswerError`).

    Calls may raise any error that the control plane refuses with, as the class of `llama_deploy.errors` that it was
    there. What programs of the published client give it and find in it is said in `llama_deploy.client.published`.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
        reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
        wait_when_full: bool = True,
        token: str | None = None,
        credentials: Credentials | None = None,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        transport: Transport | None = None,
        **published: Unpack[PublishedArguments],
    ) -> None:
        self.settings = settings_of(url, timeout_s, published, own_transport=transport is not None)
        self.credentials = known_by(token, credentials, verify=self.settings.verify)
        self._transport: Transport = transport or transport_to(
            self.settings.url, credentials=self.credentials, request_timeout_s=request_timeout_s
        )
        self._connection = Connection(
            self._transport, reconnect_timeout_s=reconnect_timeout_s, wait_when_full=wait_when_full
        )
        self._timeout_s = self.settings.timeout_s
        self._reconnect_timeout_s = reconnect_timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the connection. Calls that wait raise `ConnectionLostError`; tasks go on. May be repeated."""
        await self._connection.close()

    # --- tasks: submit, wait, read ----------------------------------------------------------------------------------

    @overload
    async def run(
        self,
        service: str | None,
        /,
        *,
        output_type: type[Output],
        input: Any = ...,
        session_id: str | None = ...,
        task_id: str | None = ...,
        timeout_s: float | None = ...,
        wait_for_service: bool = ...,
        idempotency_key: str | None = ...,
        metadata: Mapping[str, str] | None = ...,
        options: TaskOptions | Mapping[str, Any] | None = ...,
        **kwargs: Any,
    ) -> Output: ...

    @overload
    async def run(
        self,
        service: str | None,
        /,
        *,
        output_type: None = ...,
        input: Any = ...,
        session_id: str | None = ...,
        task_id: str | None = ...,
        timeout_s: float | None = ...,
        wait_for_service: bool = ...,
        idempotency_key: str | None = ...,
        metadata: Mapping[str, str] | None = ...,
        options: TaskOptions | Mapping[str, Any] | None = ...,
        **kwargs: Any,
    ) -> Any: ...

    async def run(
        self,
        service: str | None,
        /,
        *,
        input: Any = UNSET,
        session_id: str | None = None,
        task_id: str | None = None,
        timeout_s: float | None = None,
        output_type: Any = None,
        wait_for_service: bool = False,
        idempotency_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        options: TaskOptions | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Submit a task for `service`, wait until it has ended, and return its output.

        The service's arguments are the keyword arguments; or `input`: text as it is, anything else as JSON. With
        `service=None` the control plane's default service is meant. `output_type` is any type that pydantic
        validates. Under a `task_id` or `idempotency_key` that was used before, the earlier task is found.

        Raises `TaskFailed` with the remote error in `.error` when the task failed, was canceled or rejected,
        `OutputTypeError` for an output of another type, `ServiceUnknownError` when nobody serves the name (unless
        `wait_for_service`), and `WaitTimeoutError` after `timeout_s` seconds; the task goes on then.
        """
        task_id = task_id or generate_id()
        body = definition(
            service=service,
            input=input_text(input, kwargs),
            task_id=task_id,
            session_id=session_id,
            wait_for_service=wait_for_service,
            idempotency_key=idempotency_key,
            metadata=metadata,
            options=options,
        )
        ended = await self._connection.outcome(task_id, body, timeout_s=self._seconds(timeout_s))
        return output_of(ended, output_type, self._source())

    async def submit(
        self,
        service: str | None,
        /,
        *,
        input: Any = UNSET,
        session_id: str | None = None,
        task_id: str | None = None,
        timeout_s: float | None = None,
        wait_for_service: bool = False,
        idempotency_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        options: TaskOptions | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """Submit a task and return its id as soon as it is recorded: from then on it reaches exactly one outcome.

        Arguments and errors are those of `run`. When it raises anything but a refusal, the task may have been
        recorded; submitting again with the same `task_id` is safe.
        """
        task_id = task_id or generate_id()
        body = definition(
            service=service,
            input=input_text(input, kwargs),
            task_id=task_id,
            session_id=session_id,
            wait_for_service=wait_for_service,
            idempotency_key=idempotency_key,
            metadata=metadata,
            options=options,
        )
        return await self._connection.submit(task_id, body, timeout_s=self._seconds(timeout_s))

    async def submit_many(
        self,
        service: str | None,
        inputs: Iterable[Any],
        /,
        *,
        session_id: str | None = None,
        task_ids: Sequence[str] | None = None,
        timeout_s: float | None = None,
        wait_for_service: bool = False,
        metadata: Mapping[str, str] | None = None,
        options: TaskOptions | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Submit one task per input, all at once, and return their ids in the same order.

        Each input is what `submit` takes as `input`: a dict for keyword arguments, text, any JSON value. All inputs
        are checked before the first is sent. The tasks are independent: when some are refused the others are
        recorded, and the first refusal is raised with the ids of the recorded ones in `details["accepted"]`.
        """
        values = list(inputs)
        ids = list(task_ids) if task_ids is not None else [generate_id() for _ in values]
        if len(ids) != len(values):
            raise InvalidRequestError(f"{len(values)} inputs and {len(ids)} task ids were given")
        bodies = [
            definition(
                service=service,
                input=input_text(value, {}),
                task_id=task_id,
                session_id=session_id,
                wait_for_service=wait_for_service,
                idempotency_key=None,
                metadata=metadata,
                options=options,
            )
            for task_id, value in zip(ids, values, strict=True)
        ]
        seconds = self._seconds(timeout_s)
        submissions = (self._connection.submit(i, b, timeout_s=seconds) for i, b in zip(ids, bodies, strict=True))
        answers = await asyncio.gather(*submissions, return_exceptions=True)
        accepted = [answer for answer in answers if isinstance(answer, str)]
        for answer in answers:
            if isinstance(answer, BaseException):
                if isinstance(answer, LlamaDeployError):
                    answer.details["accepted"] = accepted
                raise answer
        return accepted

    async def wait(self, task_id: str, *, timeout_s: float | None = None) -> TaskResult:
        """Wait until the task has ended, well or badly, and return its recorded outcome.

        Raises `TaskNotFoundError`, and `WaitTimeoutError` after `timeout_s` seconds; the task goes on then.
        """
        ended = await self._connection.outcome(task_id, None, timeout_s=self._seconds(timeout_s))
        return result_of(ended)

    @overload
    async def result(self, task_id: str, *, timeout_s: float | None = ..., output_type: type[Output]) -> Output: ...

    @overload
    async def result(self, task_id: str, *, timeout_s: float | None = ..., output_type: None = ...) -> Any: ...

    async def result(self, task_id: str, *, timeout_s: float | None = None, output_type: Any = None) -> Any:
        """Wait until the task has ended and return its output, as `run` does; also long after it has ended.

        Raises `TaskNotFoundError` and what `run` raises.
        """
        ended = await self._connection.outcome(task_id, None, timeout_s=self._seconds(timeout_s))
        return output_of(ended, output_type, self._source())

    async def stream(self, task_id: str, *, first: int = 0) -> AsyncIterator[StreamEvent]:
        """The events of the task's stream from number `first` on, as they are recorded, until the task has ended.

        Numbers have no gap and none comes twice, whatever happens to the connection; after a break, go on with
        `first=event.index + 1`. Raises `TaskNotFoundError`.
        """
        _check_number("first", first)
        reading = self._connection.read(task_id, kind="stream", first=first)
        try:
            async for index, data in reading.items(self._connection.resume):
                event = _decode_json(data)
                yield StreamEvent(index, revived(event, self._source()) if MARK_BYTES in data else event)
        finally:
            self._connection.forget(reading)

    async def history(self, task_id: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[HistoryEntry]:
        """The entries of the task's history with numbers above `after`, in order.

        Ends with the last entry recorded now; with `follow`, when the task has ended. Raises `TaskNotFoundError`.
        """
        _check_number("after", after)
        if follow:
            reading = self._connection.read(task_id, kind="history", first=after + 1)
            try:
                async for _, data in reading.items(self._connection.resume):
                    yield HistoryEntry.model_validate_json(data)
            finally:
                self._connection.forget(reading)
            return
        position: int | None = after
        while position is not None:
            page = await self._get(HistoryPage, f"/v1/tasks/{segment(task_id)}/history", after=position)
            for entry in page.items:
                yield entry
            position = page.next

    # --- tasks: look, answer, stop ----------------------------------------------------------------------------------

    async def get_task(self, task_id: str) -> TaskView:
        """Where the task stands. Raises `TaskNotFoundError`."""
        return await self._get(TaskView, f"/v1/tasks/{segment(task_id)}")

    async def list_tasks(
        self,
        *,
        state: TaskState | str | Sequence[TaskState | str] | None = None,
        service: str | None = None,
        session_id: str | None = None,
        filter: str | None = None,
        oldest_first: bool = False,
    ) -> AsyncIterator[TaskView]:
        """All tasks that fit, newest first, page by page; `filter` is text as `state:failed service:writer age<2d`."""
        cursor: str | None = None
        while True:
            page = await self.list_tasks_page(
                state=state, service=service, session_id=session_id, filter=filter, oldest_first=oldest_first,
                cursor=cursor,
            )  # fmt: skip
            for task in page.items:
                yield task
            if (cursor := page.next) is None:
                return

    async def list_tasks_page(
        self,
        *,
        state: TaskState | str | Sequence[TaskState | str] | None = None,
        service: str | None = None,
        session_id: str | None = None,
        filter: str | None = None,
        oldest_first: bool = False,
        limit: int = PAGE_ITEMS,
        cursor: str | None = None,
    ) -> TaskPage:
        """One page of what `list_tasks` gives; `next` of a page is the `cursor` of the page after it."""
        states = [state] if isinstance(state, str) else list(state or ())
        return await self._get(
            TaskPage,
            "/v1/tasks",
            state=",".join(map(_state_name, states)) or None,
            service=service,
            session_id=session_id,
            filter=filter or None,
            oldest_first=oldest_first or None,
            limit=limit,
            cursor=cursor,
        )

    async def send_input(self, task_id: str, value: Any, *, step_id: str | None = None) -> None:
        """Give a task that waits for a person what it asks for: any JSON value. It is recorded when this returns.

        `step_id` says which step, where several wait. Raises `NoInputExpectedError`, `TaskEndedError`,
        `TaskNotFoundError`.
        """
        body = {"value": _json_value(value)}
        if step_id is not None:
            body["step_id"] = step_id
        await self._ask("POST", f"/v1/tasks/{segment(task_id)}/input", body)

    async def cancel(self, task_id: str, *, reason: str | None = None, by: str | None = None) -> TaskView:
        """Ask for the task to be stopped, and what it has called; returns where it stands after that.

        Why, and who wants it, stand in its history. Repeating it is harmless. Raises `TaskEndedError` when the task
        ended otherwise before, `TaskNotFoundError`.
        """
        body = {name: said for name, said in (("reason", reason), ("by", by)) if said is not None}
        return view_of(TaskView, await self._ask("POST", f"/v1/tasks/{segment(task_id)}/cancel", body))

    # --- sessions, services, the control plane ----------------------------------------------------------------------

    async def create_session(self, session_id: str | None = None) -> SessionView:
        """Create a session, under `session_id` if given; one that exists is returned as it is."""
        body = {} if session_id is None else {"session_id": session_id}
        return view_of(SessionView, await self._ask("POST", "/v1/sessions", body))

    async def get_session(self, session_id: str) -> SessionView:
        """The session. Raises `SessionNotFoundError`."""
        return await self._get(SessionView, f"/v1/sessions/{segment(session_id)}")

    async def get_session_state(self, session_id: str) -> dict[str, Any]:
        """The state that the session's tasks share, as recorded. Raises `SessionNotFoundError`."""
        state = await self._ask("GET", f"/v1/sessions/{segment(session_id)}/state")
        if not isinstance(state, dict):
            raise unexpected("a session's state that is not an object", self._transport.address)
        return state

    async def list_sessions(self) -> AsyncIterator[SessionView]:
        """All sessions, newest first, fetched page by page."""
        cursor: str | None = None
        while True:
            page = await self.list_sessions_page(limit=PAGE_ITEMS, cursor=cursor)
            for session in page.items:
                yield session
            if (cursor := page.next) is None:
                return

    async def list_sessions_page(self, *, limit: int = PAGE_ITEMS, cursor: str | None = None) -> SessionPage:
        """One page of what `list_sessions` gives; `next` of a page is the `cursor` of the page after it."""
        return await self._get(SessionPage, "/v1/sessions", limit=limit, cursor=cursor)

    async def status(self, *, control_plane: str | None = None) -> dict[str, Any]:
        """How the control planes stand: what runs, what waits, where the data lives; of all that share the store.

        `control_plane` is the name or URL of the one that alone is asked.
        """
        found = await self._ask("GET", "/v1/status", control_plane=control_plane)
        if not isinstance(found, dict):
            raise unexpected("a status that is not an object", self._transport.address)
        return found

    async def health(self) -> bool:
        """Whether the control plane takes work now. Raises `CannotReachError` when nothing answers at all."""
        status, _ = await self._transport.request("GET", "/readyz")
        return status == HTTPStatus.OK

    # --- requests over HTTP -----------------------------------------------------------------------------------------

    def _seconds(self, timeout_s: float | None) -> float:
        seconds = self._timeout_s if timeout_s is None else timeout_s
        if seconds < 0 or math.isnan(seconds):
            raise InvalidRequestError(f"timeout_s is {seconds}", fix="give seconds, 0 or more; math.inf waits for ever")
        return seconds


def _state_name(state: TaskState | str) -> str:
    try:
        return TaskState(state).value
    except ValueError as error:
        known = ", ".join(known.value for known in TaskState)
        raise InvalidRequestError(f"{state!r} is no state of a task", fix=f"use one of {known}") from error


def _check_number(name: str, value: int) -> None:
    if value < 0:
        raise InvalidRequestError(f"`{name}` is {value}", fix="numbers begin at 0")


def _json_value(value: Any) -> Any:
    """`value` as JSON types. Raises `InvalidRequestError` when it has no JSON form."""
    try:
        return _decode_json(encode_json(value))
    except ValueError as error:
        raise InvalidRequestError("the input cannot be sent", why=str(error)) from error


if not TYPE_CHECKING:
    __getattr__, __dir__ = published_names(__name__)
