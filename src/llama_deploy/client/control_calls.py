"""The client's part about recorded work: having it done again, and acting on many tasks at once."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import UNSET
from pydantic import TypeAdapter

from llama_deploy.client.data_calls import save
from llama_deploy.client.http_calls import HttpCalls, segment, view_of
from llama_deploy.connections.problems import error_from_problem, unexpected
from llama_deploy.errors import InvalidRequestError
from llama_deploy.messages.values import encode_json
from llama_deploy.orchestrators.picture import Picture
from llama_deploy.runtime.files import prepare
from llama_deploy.types import TaskPage, TaskView, generate_id
from llama_deploy.types.control import (
    BulkAction,
    BulkAnswer,
    DeadLetterAnswer,
    DeadLetterDetail,
    DeadLetterPage,
    DeadLetterView,
)

PAGE_TASKS = 100
"""Tasks of one request, where an action is about many."""


class ControlCalls(HttpCalls):
    """Methods of `Client` about recorded work."""

    async def retry(
        self,
        task_id: str,
        *,
        from_start: bool = False,
        new_task_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskView:
        """Have a task that did not end well done again as a new task; returns that one once it is recorded.

        It begins just before what failed and keeps what other steps have answered, or runs all of it with
        `from_start`. Under a `new_task_id` or `idempotency_key` repeating is safe. Raises `TaskNotFoundError`,
        `NotRepeatableError`.
        """
        body = {"from_start": from_start, "task_id": new_task_id, "idempotency_key": idempotency_key}
        return await self._again(task_id, "retry", body)

    async def replay(
        self,
        task_id: str,
        *,
        step_id: str | None = None,
        input: Any = UNSET,
        data: Any = UNSET,
        new_task_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskView:
        """Run a task once more as a new task, from one of its steps or from the start; returns the new one.

        `input` is another input, of the step or of the task: text as it is, anything else as JSON. `data` replaces
        all data of the step's message. Raises `TaskNotFoundError`, `NotRepeatableError`.
        """
        body = {"step_id": step_id, "task_id": new_task_id, "idempotency_key": idempotency_key}
        return await self._again(task_id, "replay", body, input=input, data=data)

    async def fork(
        self,
        task_id: str,
        seq: int,
        *,
        step_id: str | None = None,
        input: Any = UNSET,
        data: Any = UNSET,
        new_task_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskView:
        """Make a task that goes on from where `task_id` stood after entry `seq` of its history; returns the new one.

        Every step that was open then runs anew. `input` or `data` are for the step `step_id`, as in `replay`.
        """
        body = {"seq": seq, "step_id": step_id, "task_id": new_task_id, "idempotency_key": idempotency_key}
        return await self._again(task_id, "fork", body, input=input, data=data)

    async def _again(self, task_id: str, what: str, body: dict[str, Any], **edit: Any) -> TaskView:
        given = {name: value for name, value in body.items() if value is not None}
        given |= {name: _json(name, value) for name, value in edit.items() if value is not UNSET}
        return view_of(TaskView, await self._ask("POST", f"/v1/tasks/{segment(task_id)}/{what}", given))

    async def delete_task(self, task_id: str) -> TaskView:
        """Remove an ended task for good; returns what it was.

        Raises `TaskNotFoundError`, and `NotRepeatableError` while it has not ended.
        """
        return view_of(TaskView, await self._ask("DELETE", f"/v1/tasks/{segment(task_id)}"))

    async def bulk(
        self,
        action: BulkAction,
        filter: str,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> BulkAnswer:
        """Do `action` to all tasks that fit `filter`, newest first, at most `limit`; with `dry_run` only count them.

        What cannot be done to one task stands in its item and keeps nobody else back. After an error, repeating it
        under the same `idempotency_key` makes no second task of any.
        """
        body: dict[str, Any] = {"action": action, "filter": filter, "dry_run": dry_run}
        body |= {"reason": reason or "", "idempotency_key": idempotency_key or generate_id()}
        answer: BulkAnswer | None = None
        while True:
            left = PAGE_TASKS if limit is None else limit - (0 if answer is None else len(answer.items))
            body["limit"] = max(1, min(PAGE_TASKS, left))
            page = view_of(BulkAnswer, await self._ask("POST", "/v1/tasks/bulk", body))
            if answer is None:
                answer = page
            else:
                answer.items += page.items
                answer.next = page.next
            if answer.next is None or (limit is not None and len(answer.items) >= limit):
                return answer
            body["cursor"] = answer.next

    async def graph(self, task_id: str) -> Picture:
        """The graph of the task's orchestrator, and where the task stands on it: nodes and edges, `svg()`, `mermaid()`.

        Raises `TaskNotFoundError`.
        """
        answer = await self._ask("GET", f"/v1/tasks/{segment(task_id)}/graph")
        try:
            return TypeAdapter(Picture).validate_python(answer)
        except ValueError as error:
            raise unexpected(f"what is no picture of a task ({error})") from error

    # --- files --------------------------------------------------------------------------------------------------------

    async def export(
        self, task_id: str, path: str | os.PathLike[str], *, replace: bool = False, unredacted: bool = False
    ) -> int:
        """Write all that is recorded of a task to a file; returns its size in bytes.

        The file is there once all of it is on disk. Raises `TaskNotFoundError`, and `InvalidRequestError` when there
        is a file of that name and it is not to be replaced. Values that people do not get to see are in it only with
        `unredacted`.
        """
        address = f"/v1/tasks/{segment(task_id)}/export" + ("?unredacted=true" if unredacted else "")
        return await save(self._transport.download(address), path, replace=replace)

    async def export_all(
        self,
        filter: str,
        path: str | os.PathLike[str],
        *,
        limit: int | None = None,
        replace: bool = False,
        unredacted: bool = False,
    ) -> int:
        """Write all tasks that fit `filter` to one file, or the newest `limit`; returns its size in bytes.

        `bulk("export", filter, dry_run=True)` counts them first. Raises as `export` does.
        """
        address = f"/v1/export?filter={segment(filter)}" + ("&unredacted=true" if unredacted else "")
        if limit is not None:
            address += f"&limit={limit:d}"
        return await save(self._transport.download(address), path, replace=replace)

    async def import_tasks(self, path: str | os.PathLike[str], *, new_task_id: str | None = None) -> list[TaskView]:
        """Take in the tasks of a file that `export` has written, or its one task under another id.

        All of it is checked before anything is written. Raises `InvalidRequestError` that names the line where the
        file is not what an export writes, `TaskConflictError` for a task that exists, `LimitExceededError`.
        """
        content = await prepare(path)
        try:
            status, _, body = await self._transport.exchange(
                "POST",
                "/v1/import",
                params={} if new_task_id is None else {"new_task_id": new_task_id},
                headers={"content-length": str(content.size_bytes), "content-type": "application/x-ndjson"},
                content=content.all_parts(),
            )
        finally:
            content.close()
        try:
            answer = msgspec.json.decode(body)
        except msgspec.DecodeError:
            answer = None
        if status >= HTTPStatus.BAD_REQUEST:
            raise error_from_problem(answer, status=status, address=self._transport.address)
        return view_of(TaskPage, answer).items

    # --- dead letters -------------------------------------------------------------------------------------------------

    async def list_dead(
        self,
        *,
        service: str | None = None,
        task_id: str | None = None,
        limit: int = PAGE_TASKS,
        cursor: str | None = None,
    ) -> DeadLetterPage:
        """One page of steps that were given up, newest first, those that were sent again included."""
        return await self._get(DeadLetterPage, "/v1/dead", service=service, task_id=task_id, limit=limit, cursor=cursor)

    async def get_dead(self, step_id: str) -> DeadLetterDetail:
        """One of them, with its message and its attempts. Raises `DeadLetterNotFoundError`."""
        return await self._get(DeadLetterDetail, f"/v1/dead/{segment(step_id)}")

    async def redrive(self, step_id: str) -> TaskView:
        """Send a step again that was given up; returns the task in which that happens. Repeating it is harmless.

        Raises `DeadLetterNotFoundError`, and `NotRepeatableError` where its task goes on or has completed without it.
        """
        return view_of(TaskView, await self._ask("POST", f"/v1/dead/{segment(step_id)}/redrive"))

    async def redrive_task(self, task_id: str) -> TaskView:
        """Send all steps of a task again that were given up; returns the task in which that happens.

        Raises `TaskNotFoundError`, `DeadLetterNotFoundError` where there is nothing to send, `NotRepeatableError`. For
        all tasks that fit a filter: `bulk("redrive", filter)`.
        """
        return view_of(TaskView, await self._ask("POST", f"/v1/tasks/{segment(task_id)}/redrive"))

    async def redrive_all(
        self,
        *,
        service: str | None = None,
        code: str | None = None,
        older_than_s: float | None = None,
        dry_run: bool = False,
        limit: int = PAGE_TASKS,
    ) -> DeadLetterAnswer:
        """Send at most `limit` of those again that fit all that is given, and that were not yet."""
        return await self._dead("redrive", service, code, older_than_s, dry_run=dry_run, limit=limit)

    async def purge(self, step_id: str) -> DeadLetterView:
        """Remove a dead letter for good; its task stays. Raises `DeadLetterNotFoundError`."""
        return view_of(DeadLetterView, await self._ask("DELETE", f"/v1/dead/{segment(step_id)}"))

    async def purge_all(
        self,
        *,
        service: str | None = None,
        code: str | None = None,
        older_than_s: float | None = None,
        dry_run: bool = False,
        limit: int = PAGE_TASKS,
    ) -> DeadLetterAnswer:
        """Remove at most `limit` dead letters for good that fit all that is given."""
        return await self._dead("purge", service, code, older_than_s, dry_run=dry_run, limit=limit)

    async def logs(self, *, last: int = 200, follow: bool = False) -> AsyncIterator[str]:
        """What `llamactl serve` and the services that it started have printed: `last` lines, and those to come.

        Raises `NotOfferedError` where the control plane keeps no log, because it runs within a program.
        """
        rest = b""
        async for piece in self._transport.download(f"/v1/logs?last={last}&follow={str(follow).lower()}"):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace")

    async def _dead(
        self,
        what: str,
        service: str | None,
        code: str | None,
        older_than_s: float | None,
        *,
        dry_run: bool,
        limit: int,
    ) -> DeadLetterAnswer:
        body = {"service": service, "code": code, "older_than_s": older_than_s, "dry_run": dry_run, "limit": limit}
        given = {name: value for name, value in body.items() if value is not None}
        return view_of(DeadLetterAnswer, await self._ask("POST", f"/v1/dead/{what}", given))


def _json(name: str, value: Any) -> Any:
    """A value as JSON types. Raises `InvalidRequestError` when it has no JSON form."""
    try:
        return msgspec.json.decode(encode_json(value))
    except ValueError as error:
        raise InvalidRequestError(f"{name} cannot be sent", why=str(error)) from error
