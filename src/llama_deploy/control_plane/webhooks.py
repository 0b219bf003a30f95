"""Which webhook a task has, what is told of its end, and how that gets on.

The news of an end is a delivery like any other, recorded in the commit that ends the task: it survives a crash, is
tried again, and is given up into the dead letters. What is told is read from the record when it is sent, so that
nothing of it is stored twice and every attempt says the same. The requests are made by `services.webhook`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from llama_deploy.control_plane.decisions import Sending
from llama_deploy.control_plane.records import decode_record
from llama_deploy.errors import WebhookFailedError
from llama_deploy.messages.webhooks import WebhookCall, message_id, parse_secret
from llama_deploy.types import StepOptions, TaskDefinition, Webhook
from llama_deploy.types.webhooks import WEBHOOK_SERVICE, WebhookSettings, WebhookView, redacted

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine
    from llama_deploy.control_plane.tasks import TaskEntry

RESULT_BYTES_MAX = 65_536
"""A result up to this size is part of the event; of a larger one the event says where it is."""


class Webhooks:
    """The webhooks of one engine."""

    def __init__(self, engine: Engine, settings: WebhookSettings) -> None:
        """Raises `SettingError` for a secret that cannot be used."""
        self._engine = engine
        self._settings = settings
        self._keys = {name: parse_secret(secret) for name, secret in settings.secrets.items()}
        self._default = settings.default

    def check(self, webhook: Webhook) -> None:
        """Raise `InvalidRequestError` for a webhook that a new task may not name."""
        self._settings.check(webhook)

    def of(self, definition: TaskDefinition) -> Webhook | None:
        """Whom to tell of a task's end."""
        options = definition.options
        if options is None:
            return self._default
        if options.webhook is not None:
            return options.webhook
        child = options.origin is not None and options.origin.kind == "child"
        return None if child else self._default

    def sending(self, definition: TaskDefinition) -> Sending | None:
        """The message that has the end of a task told, `None` where nobody is to hear of it."""
        webhook = self.of(definition)
        if webhook is None:
            return None
        host = webhook.url.partition("://")[2].partition("/")[0][:200] or "-"
        return Sending(WEBHOOK_SERVICE, "completed_task", b"{}", None, None, 0.0, StepOptions(key=host))

    async def call(self, step_id: str) -> WebhookCall:
        """The request that a step of `__webhook__` has to make; the same whenever it is asked for.

        Raises `WebhookFailedError`, which is final, where there is nothing to tell any more, or nobody to tell it.
        """
        entry = await self._engine.cache.load(step_id.rpartition(":")[0])
        if entry is None or entry.outcome is None:
            raise WebhookFailedError("there is no ended task to tell of", retryable=False)
        webhook = self.of(entry.definition)
        if webhook is None:
            raise WebhookFailedError("the webhook is not configured any more", retryable=False)
        keys: tuple[bytes, ...] = ()
        if webhook.secret is not None:
            if webhook.secret not in self._keys:
                raise WebhookFailedError(
                    f"the secret {webhook.secret!r} of the webhook is not known any more",
                    fix="give the control plane the secret again, then send the dead letter again",
                    retryable=False,
                )
            keys = self._keys[webhook.secret]
        return WebhookCall(
            url=webhook.url, id=message_id(step_id), body=msgspec.json.encode(event_of(entry)), keys=keys
        )

    async def view(self, entry: TaskEntry) -> WebhookView | None:
        """How the news of a task's end gets on; `None` where nobody is to be told."""
        webhook = self.of(entry.definition)
        if not entry.ended:
            return None if webhook is None else WebhookView(url=redacted(webhook.url), state="waiting")
        step = next((step for step in entry.open.values() if step.service == WEBHOOK_SERVICE), None)
        url = "" if webhook is None else redacted(webhook.url)
        if step is not None:
            due_at = step.due_at if step.due_at > self._engine.clock.now() else None
            return WebhookView(url=url, state="sending", attempt=step.attempt, due_at=due_at, error=step.trouble)
        step_id = await self._step_id(entry)
        if step_id is None:
            return None
        dead = await self._engine.store.load_dead(step_id)
        if dead is not None and not dead.redriven:
            return WebhookView(url=url, state="failed", attempt=dead.attempt, error=dead.message)
        return WebhookView(url=url, state="delivered")

    async def _step_id(self, entry: TaskEntry) -> str | None:
        """The step that told of the end of a task, `None` where there was none."""
        row = entry.row
        rows = await self._engine.contents.history(row.task_id, after=row.version - 1, limit=1)
        messages = decode_record(rows[0].data).messages if rows else []
        return next((message.step_id for message in messages if message.service == WEBHOOK_SERVICE), None)


def event_of(entry: TaskEntry) -> dict[str, Any]:
    """What is told of the end of a task."""
    row = entry.row
    outcome = entry.outcome or b"null"
    result = msgspec.json.decode(outcome)
    error = result.get("error") or {}
    small = len(outcome) <= RESULT_BYTES_MAX
    ended_at = row.ended_at or row.updated_at
    return {
        "type": f"task.{row.state}",
        "timestamp": _iso(ended_at),
        "data": {
            "task_id": row.task_id,
            "state": row.state,
            "service": row.service or None,
            "session_id": None if row.session_id == row.task_id else row.session_id,
            "origin": row.origin or None,
            "metadata": entry.definition.metadata,
            "created_at": _iso(row.created_at),
            "ended_at": _iso(ended_at),
            "output": (result.get("value") if result.get("kind") == "json" else result.get("result"))
            if small and row.state == "completed"
            else None,
            "error": {"code": error.get("code"), "message": str(error.get("message") or "")[:4_000]} if error else None,
            "result_bytes": len(outcome),
            "result_path": f"/v1/tasks/{row.task_id}/result",
        },
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
