"""The client for programs without an event loop: the methods of `Client`, blocking.

A thin portal and nothing more: a thread of its own runs a `Client`, and each method hands its arguments on. That the
names and signatures are the same is proved by a test.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from msgspec import UNSET

from llama_deploy._lazy import published_names
from llama_deploy.client.async_client import PAGE_ITEMS, RECONNECT_TIMEOUT_S, Client, StreamEvent
from llama_deploy.client.portal import Portal
from llama_deploy.client.published import PublishedArguments
from llama_deploy.client.sync_artifact_calls import SyncArtifactCalls
from llama_deploy.client.sync_control_calls import SyncControlCalls
from llama_deploy.client.sync_data_calls import SyncDataCalls
from llama_deploy.client.sync_service_calls import SyncServiceCalls
from llama_deploy.client.sync_time_calls import SyncTimeCalls
from llama_deploy.connections.http_requests import REQUEST_TIMEOUT_S
from llama_deploy.connections.transport import Transport
from llama_deploy.errors import ConnectionLostError
from llama_deploy.runtime.credentials import Credentials
from llama_deploy.types import (
    HistoryEntry,
    SessionPage,
    SessionView,
    TaskOptions,
    TaskPage,
    TaskResult,
    TaskState,
    TaskView,
)

Output = TypeVar("Output")


class SyncClient(SyncArtifactCalls, SyncControlCalls, SyncDataCalls, SyncServiceCalls, SyncTimeCalls):
    """`Client` for blocking code; see there for what arguments mean, what is raised and what is true afterwards.

    It may be used from several threads at once, and in a notebook whose own loop is running. Use it with `with`, or
    call `close`.
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
        self._client = Client(
            url,
            timeout_s=timeout_s,
            reconnect_timeout_s=reconnect_timeout_s,
            wait_when_full=wait_when_full,
            token=token,
            credentials=credentials,
            request_timeout_s=request_timeout_s,
            transport=transport,
            **published,
        )
        self._portal = Portal("llama-deploy-client")
        weakref.finalize(self, self._portal.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the connection. Calls of other threads raise `ConnectionLostError`; tasks go on. May be repeated."""
        if not self._portal.closed:
            with contextlib.suppress(ConnectionLostError):  # another thread has closed it meanwhile
                self._portal.call(self._client.close())
            self._portal.close()
        self._portal.join()

    @overload
    def run(
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
    def run(
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

    def run(
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
        """Submit a task, wait until it has ended, and return its output. See `Client.run`."""
        return self._portal.call(
            self._client.run(
                service,
                input=input,
                session_id=session_id,
                task_id=task_id,
                timeout_s=timeout_s,
                output_type=output_type,
                wait_for_service=wait_for_service,
                idempotency_key=idempotency_key,
                metadata=metadata,
                options=options,
                **kwargs,
            )
        )

    def submit(
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
        """Submit a task and return its id once it is recorded. See `Client.submit`."""
        return self._portal.call(
            self._client.submit(
                service,
                input=input,
                session_id=session_id,
                task_id=task_id,
                timeout_s=timeout_s,
                wait_for_service=wait_for_service,
                idempotency_key=idempotency_key,
                metadata=metadata,
                options=options,
                **kwargs,
            )
        )

    def submit_many(
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
        """Submit one task per input, all at once. See `Client.submit_many`."""
        return self._portal.call(
            self._client.submit_many(
                service,
                list(inputs),
                session_id=session_id,
                task_ids=task_ids,
                timeout_s=timeout_s,
                wait_for_service=wait_for_service,
                metadata=metadata,
                options=options,
            )
        )

    def wait(self, task_id: str, *, timeout_s: float | None = None) -> TaskResult:
        """Wait until the task has ended, and return its recorded outcome. See `Client.wait`."""
        return self._portal.call(self._client.wait(task_id, timeout_s=timeout_s))

    @overload
    def result(self, task_id: str, *, timeout_s: float | None = ..., output_type: type[Output]) -> Output: ...

    @overload
    def result(self, task_id: str, *, timeout_s: float | None = ..., output_type: None = ...) -> Any: ...

    def result(self, task_id: str, *, timeout_s: float | None = None, output_type: Any = None) -> Any:
        """Wait until the task has ended, and return its output. See `Client.result`."""
        return self._portal.call(self._client.result(task_id, timeout_s=timeout_s, output_type=output_type))

    def stream(self, task_id: str, *, first: int = 0) -> Iterator[StreamEvent]:
        """The events of the task's stream, as they are recorded. See `Client.stream`."""
        return self._portal.iterate(lambda: self._client.stream(task_id, first=first))

    def history(self, task_id: str, *, after: int = 0, follow: bool = False) -> Iterator[HistoryEntry]:
        """The entries of the task's history. See `Client.history`."""
        return self._portal.iterate(lambda: self._client.history(task_id, after=after, follow=follow))

    def get_task(self, task_id: str) -> TaskView:
        """Where the task stands. See `Client.get_task`."""
        return self._portal.call(self._client.get_task(task_id))

    def list_tasks(
        self,
        *,
        state: TaskState | str | Sequence[TaskState | str] | None = None,
        service: str | None = None,
        session_id: str | None = None,
        filter: str | None = None,
        oldest_first: bool = False,
    ) -> Iterator[TaskView]:
        """All tasks that fit the filters, newest first. See `Client.list_tasks`."""
        return self._portal.iterate(
            lambda: self._client.list_tasks(
                state=state, service=service, session_id=session_id, filter=filter, oldest_first=oldest_first
            )
        )

    def list_tasks_page(
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
        """One page of what `list_tasks` gives. See `Client.list_tasks_page`."""
        return self._portal.call(
            self._client.list_tasks_page(
                state=state,
                service=service,
                session_id=session_id,
                filter=filter,
                oldest_first=oldest_first,
                limit=limit,
                cursor=cursor,
            )
        )

    def send_input(self, task_id: str, value: Any, *, step_id: str | None = None) -> None:
        """Give a task that waits for a person what it asks for. See `Client.send_input`."""
        self._portal.call(self._client.send_input(task_id, value, step_id=step_id))

    def cancel(self, task_id: str, *, reason: str | None = None, by: str | None = None) -> TaskView:
        """Ask for the task to be stopped. See `Client.cancel`."""
        return self._portal.call(self._client.cancel(task_id, reason=reason, by=by))

    def create_session(self, session_id: str | None = None) -> SessionView:
        """Create a session. See `Client.create_session`."""
        return self._portal.call(self._client.create_session(session_id))

    def get_session(self, session_id: str) -> SessionView:
        """The session. See `Client.get_session`."""
        return self._portal.call(self._client.get_session(session_id))

    def get_session_state(self, session_id: str) -> dict[str, Any]:
        """The state that the session's tasks share. See `Client.get_session_state`."""
        return self._portal.call(self._client.get_session_state(session_id))

    def list_sessions(self) -> Iterator[SessionView]:
        """All sessions, newest first. See `Client.list_sessions`."""
        return self._portal.iterate(self._client.list_sessions)

    def list_sessions_page(self, *, limit: int = PAGE_ITEMS, cursor: str | None = None) -> SessionPage:
        """One page of what `list_sessions` gives. See `Client.list_sessions_page`."""
        return self._portal.call(self._client.list_sessions_page(limit=limit, cursor=cursor))

    def status(self, *, control_plane: str | None = None) -> dict[str, Any]:
        """How the control planes stand. See `Client.status`."""
        return self._portal.call(self._client.status(control_plane=control_plane))

    def health(self) -> bool:
        """Whether the control plane takes work now. See `Client.health`."""
        return self._portal.call(self._client.health())


if not TYPE_CHECKING:
    __getattr__, __dir__ = published_names(__name__)
