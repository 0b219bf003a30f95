"""`Client`'s part about time for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.types import TaskView
from llama_deploy.types.schedules import Schedule, ScheduleView


class SyncTimeCalls:
    """Methods of `SyncClient` about pauses and schedules; see `Client` for what they mean."""

    _client: Client
    _portal: Portal

    def pause(self, task_id: str, *, reason: str | None = None, by: str | None = None) -> TaskView:
        """Hand out no further step of the task. See `Client.pause`."""
        return self._portal.call(self._client.pause(task_id, reason=reason, by=by))

    def resume(self, task_id: str, *, reason: str | None = None, by: str | None = None) -> TaskView:
        """Have a paused task go on. See `Client.resume`."""
        return self._portal.call(self._client.resume(task_id, reason=reason, by=by))

    def migrate(self, task_id: str, *, reason: str | None = None, by: str | None = None) -> TaskView:
        """Have the deployed version of its orchestrator go on with a task. See `Client.migrate`."""
        return self._portal.call(self._client.migrate(task_id, reason=reason, by=by))

    def put_schedule(self, name: str, schedule: Schedule | Mapping[str, Any]) -> ScheduleView:
        """Create a schedule, or replace it. See `Client.put_schedule`."""
        return self._portal.call(self._client.put_schedule(name, schedule))

    def list_schedules(self) -> list[ScheduleView]:
        """Every schedule and how it stands. See `Client.list_schedules`."""
        return self._portal.call(self._client.list_schedules())

    def get_schedule(self, name: str) -> ScheduleView:
        """One schedule. See `Client.get_schedule`."""
        return self._portal.call(self._client.get_schedule(name))

    def delete_schedule(self, name: str) -> ScheduleView:
        """Forget a schedule; its tasks stay. See `Client.delete_schedule`."""
        return self._portal.call(self._client.delete_schedule(name))

    def pause_schedule(self, name: str, *, reason: str | None = None, by: str | None = None) -> ScheduleView:
        """Submit nothing until it is resumed. See `Client.pause_schedule`."""
        return self._portal.call(self._client.pause_schedule(name, reason=reason, by=by))

    def resume_schedule(self, name: str) -> ScheduleView:
        """Go on with the next time. See `Client.resume_schedule`."""
        return self._portal.call(self._client.resume_schedule(name))

    def trigger_schedule(self, name: str) -> str:
        """Submit a task of the schedule now; its id. See `Client.trigger_schedule`."""
        return self._portal.call(self._client.trigger_schedule(name))

    def next_times(self, name: str, *, count: int = 5) -> list[datetime]:
        """The next times of a schedule, in its own time zone. See `Client.next_times`."""
        return self._portal.call(self._client.next_times(name, count=count))
