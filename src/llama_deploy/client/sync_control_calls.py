"""`Client`'s part about recorded work for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.types import TaskView
from llama_deploy.types.control import BulkAction, BulkAnswer


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
