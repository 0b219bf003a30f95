"""`Client`'s part about recorded work for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from msgspec import UNSET

from llama_deploy.client.async_client import Client
from llama_deploy.client.control_calls import PAGE_TASKS
from llama_deploy.client.portal import Portal
from llama_deploy.orchestrators.picture import Picture
from llama_deploy.types import TaskView
from llama_deploy.types.control import (
    BulkAction,
    BulkAnswer,
    DeadLetterAnswer,
    DeadLetterDetail,
    DeadLetterPage,
    DeadLetterView,
)


class SyncControlCalls:
    """Methods of `SyncClient` about recorded work; see `Client` for what they mean."""

    _client: Client
    _portal: Portal

    def retry(
        self,
        task_id: str,
        *,
        from_start: bool = False,
        new_task_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskView:
        """Have a task that did not end well done again. See `Client.retry`."""
        return self._portal.call(
            self._client.retry(task_id, from_start=from_start, new_task_id=new_task_id, idempotency_key=idempotency_key)
        )

    def replay(
        self,
        task_id: str,
        *,
        step_id: str | None = None,
        input: Any = UNSET,
        data: Any = UNSET,
        new_task_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskView:
        """Run a task once more. See `Client.replay`."""
        return self._portal.call(
            self._client.replay(
                task_id,
                step_id=step_id,
                input=input,
                data=data,
                new_task_id=new_task_id,
                idempotency_key=idempotency_key,
            )
        )

    def fork(
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
        """Make a task that goes on from where another one stood. See `Client.fork`."""
        return self._portal.call(
            self._client.fork(
                task_id,
                seq,
                step_id=step_id,
                input=input,
                data=data,
                new_task_id=new_task_id,
                idempotency_key=idempotency_key,
            )
        )

    def delete_task(self, task_id: str) -> TaskView:
        """Remove an ended task for good. See `Client.delete_task`."""
        return self._portal.call(self._client.delete_task(task_id))

    def bulk(
        self,
        action: BulkAction,
        filter: str,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> BulkAnswer:
        """Do something to all tasks that fit a filter. See `Client.bulk`."""
        return self._portal.call(
            self._client.bulk(
                action, filter, dry_run=dry_run, limit=limit, reason=reason, idempotency_key=idempotency_key
            )
        )

    def list_dead(
        self,
        *,
        service: str | None = None,
        task_id: str | None = None,
        limit: int = PAGE_TASKS,
        cursor: str | None = None,
    ) -> DeadLetterPage:
        """One page of steps that were given up. See `Client.list_dead`."""
        return self._portal.call(self._client.list_dead(service=service, task_id=task_id, limit=limit, cursor=cursor))

    def get_dead(self, step_id: str) -> DeadLetterDetail:
        """One of them. See `Client.get_dead`."""
        return self._portal.call(self._client.get_dead(step_id))

    def redrive(self, step_id: str) -> TaskView:
        """Send a step again that was given up. See `Client.redrive`."""
        return self._portal.call(self._client.redrive(step_id))

    def redrive_task(self, task_id: str) -> TaskView:
        """Send all steps of a task again that were given up. See `Client.redrive_task`."""
        return self._portal.call(self._client.redrive_task(task_id))

    def redrive_all(
        self,
        *,
        service: str | None = None,
        code: str | None = None,
        older_than_s: float | None = None,
        dry_run: bool = False,
        limit: int = PAGE_TASKS,
    ) -> DeadLetterAnswer:
        """Send those again that fit. See `Client.redrive_all`."""
        return self._portal.call(
            self._client.redrive_all(
                service=service, code=code, older_than_s=older_than_s, dry_run=dry_run, limit=limit
            )
        )

    def purge(self, step_id: str) -> DeadLetterView:
        """Remove a dead letter for good. See `Client.purge`."""
        return self._portal.call(self._client.purge(step_id))

    def purge_all(
        self,
        *,
        service: str | None = None,
        code: str | None = None,
        older_than_s: float | None = None,
        dry_run: bool = False,
        limit: int = PAGE_TASKS,
    ) -> DeadLetterAnswer:
        """Remove those that fit for good. See `Client.purge_all`."""
        return self._portal.call(
            self._client.purge_all(service=service, code=code, older_than_s=older_than_s, dry_run=dry_run, limit=limit)
        )

    def graph(self, task_id: str) -> Picture:
        """The graph of a task, and where it stands on it. See `Client.graph`."""
        return self._portal.call(self._client.graph(task_id))

    def export(
        self, task_id: str, path: str | os.PathLike[str], *, replace: bool = False, unredacted: bool = False
    ) -> int:
        """Write all that is recorded of a task to a file. See `Client.export`."""
        return self._portal.call(self._client.export(task_id, path, replace=replace, unredacted=unredacted))

    def export_all(
        self,
        filter: str,
        path: str | os.PathLike[str],
        *,
        limit: int | None = None,
        replace: bool = False,
        unredacted: bool = False,
    ) -> int:
        """Write all tasks that fit to one file. See `Client.export_all`."""
        return self._portal.call(
            self._client.export_all(filter, path, limit=limit, replace=replace, unredacted=unredacted)
        )

    def import_tasks(self, path: str | os.PathLike[str], *, new_task_id: str | None = None) -> list[TaskView]:
        """Take in the tasks of a file. See `Client.import_tasks`."""
        return self._portal.call(self._client.import_tasks(path, new_task_id=new_task_id))

    def logs(self, *, last: int = 200, follow: bool = False) -> Iterator[str]:
        """What the processes of the deployment have printed. See `Client.logs`."""
        return self._portal.iterate(lambda: self._client.logs(last=last, follow=follow))
