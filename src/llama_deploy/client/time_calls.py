"""The client's part about time: holding tasks back and letting them go on."""

from __future__ import annotations

from llama_deploy.client.http_calls import HttpCalls, segment, view_of
from llama_deploy.types import TaskView


class TimeCalls(HttpCalls):
    """Methods of `Client` about pauses."""

    async def pause(self, task_id: str, *, reason: str | None = None) -> TaskView:
        """Hand out no further step of the task; what runs finishes. It is recorded when this returns.

        Repeating it is harmless. Raises `TaskEndedError`, `TaskNotFoundError`.
        """
        body = {} if reason is None else {"reason": reason}
        return view_of(TaskView, await self._ask("POST", f"/v1/tasks/{segment(task_id)}/pause", body))

    async def resume(self, task_id: str, *, reason: str | None = None) -> TaskView:
        """Have a paused task go on. It is recorded when this returns.

        Repeating it is harmless. Raises `TaskEndedError`, `TaskNotFoundError`.
        """
        body = {} if reason is None else {"reason": reason}
        return view_of(TaskView, await self._ask("POST", f"/v1/tasks/{segment(task_id)}/resume", body))
