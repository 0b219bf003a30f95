"""The client's part about time: holding tasks back and letting them go on, and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from llama_deploy.client.http_calls import HttpCalls, segment, view_of
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types import TaskView
from llama_deploy.types.schedules import Schedule, SchedulePage, ScheduleTask, ScheduleTimes, ScheduleView


class TimeCalls(HttpCalls):
    """Methods of `Client` about pauses, versions and schedules."""

    async def pause(self, task_id: str, *, reason: str | None = None, by: str | None = None) -> TaskView:
        """Hand out no further step of the task; what runs finishes. It is recorded when this returns.

        Why, and who wants it, stand in its history. Repeating it is harmless. Raises `TaskEndedError`,
        `TaskNotFoundError`.
        """
        path = f"/v1/tasks/{segment(task_id)}/pause"
        return view_of(TaskView, await self._ask("POST", path, _said(reason, by)))

    async def resume(self, task_id: str, *, reason: str | None = None, by: str | None = None) -> TaskView:
        """Have a paused task go on. It is recorded when this returns.

        Repeating it is harmless. Raises `TaskEndedError`, `TaskNotFoundError`.
        """
        path = f"/v1/tasks/{segment(task_id)}/resume"
        return view_of(TaskView, await self._ask("POST", path, _said(reason, by)))

    async def migrate(self, task_id: str, *, reason: str | None = None, by: str | None = None) -> TaskView:
        """Have the deployed version of its orchestrator go on with a task that began with another one.

        It is recorded when this returns. Repeating it is harmless. Raises `OrchestratorError` where that version does
        not say how it reads the state (the task goes on as it was), `TaskEndedError`, `TaskNotFoundError`.
        """
        path = f"/v1/tasks/{segment(task_id)}/migrate"
        return view_of(TaskView, await self._ask("POST", path, _said(reason, by)))

    async def put_schedule(self, name: str, schedule: Schedule | Mapping[str, Any]) -> ScheduleView:
        """Create a schedule, or replace it: `{"cron": "0 3 * * *", "service": "report"}`. It is on record when this
        returns.

        Raises `InvalidRequestError` for one that means nothing, `ScheduleOfFileError` for one of the deployment file.
        """
        try:
            checked = schedule if isinstance(schedule, Schedule) else Schedule.model_validate(dict(schedule))
            body = checked.model_dump(mode="json", exclude_defaults=True)
        except ValidationError as error:
            problems = [": ".join([*map(str, item["loc"]), item["msg"]]) for item in error.errors()]
            raise InvalidRequestError("the schedule does not fit", why="; ".join(problems)) from error
        except ValueError as error:
            raise InvalidRequestError("the schedule has no JSON form", why=str(error)) from error
        return view_of(ScheduleView, await self._ask("PUT", f"/v1/schedules/{segment(name)}", body))

    async def list_schedules(self) -> list[ScheduleView]:
        """Every schedule and how it stands."""
        return (await self._get(SchedulePage, "/v1/schedules")).items

    async def get_schedule(self, name: str) -> ScheduleView:
        """One schedule. Raises `ScheduleNotFoundError`."""
        return await self._get(ScheduleView, f"/v1/schedules/{segment(name)}")

    async def delete_schedule(self, name: str) -> ScheduleView:
        """Forget a schedule, not its tasks; how it stood. Raises `ScheduleNotFoundError`, `ScheduleOfFileError`."""
        return view_of(ScheduleView, await self._ask("DELETE", f"/v1/schedules/{segment(name)}"))

    async def pause_schedule(self, name: str, *, reason: str | None = None, by: str | None = None) -> ScheduleView:
        """Submit nothing until it is resumed. Repeating it is harmless. Raises `ScheduleNotFoundError`."""
        return view_of(ScheduleView, await self._ask("POST", f"/v1/schedules/{segment(name)}/pause", _said(reason, by)))

    async def resume_schedule(self, name: str) -> ScheduleView:
        """Go on with the next time. Repeating it is harmless. Raises `ScheduleNotFoundError`."""
        return view_of(ScheduleView, await self._ask("POST", f"/v1/schedules/{segment(name)}/resume"))

    async def trigger_schedule(self, name: str) -> str:
        """Submit a task of the schedule now, whatever runs or is paused; its id. Raises `ScheduleNotFoundError`."""
        answer = await self._ask("POST", f"/v1/schedules/{segment(name)}/trigger")
        return view_of(ScheduleTask, answer).task_id

    async def next_times(self, name: str, *, count: int = 5) -> list[datetime]:
        """The next times of a schedule, in its own time zone. Raises `ScheduleNotFoundError`."""
        return (await self._get(ScheduleTimes, f"/v1/schedules/{segment(name)}/next", count=count)).items


def _said(reason: str | None, by: str | None) -> dict[str, str]:
    """Why, and who wants it, as far as that was said."""
    return {name: said for name, said in (("reason", reason), ("by", by)) if said is not None}
