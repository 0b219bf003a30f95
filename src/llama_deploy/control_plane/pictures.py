"""Where a task stands as a picture: its orchestrator's own, with what is recorded and with who works on what now.

The history is read a page at a time, so that a long one keeps nobody waiting.
"""

from __future__ import annotations

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.records import to_entry
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.orchestrators.picture import Picture
from llama_deploy.orchestrators.task_picture import TaskRecord
from llama_deploy.state_stores.rows import Condition, TaskFilter
from llama_deploy.types.state import TaskState

ENTRIES_AT_ONCE = 200
CHILDREN_AT_ONCE = 200


async def task_picture(engine: Engine, entry: TaskEntry) -> Picture:
    """The picture of a recorded task, as it stands now."""
    record = TaskRecord(entry.policy)
    seq = 0
    while rows := await engine.contents.history(entry.row.task_id, after=seq, limit=ENTRIES_AT_ONCE):
        for row in rows:
            record.take(to_entry(row.seq, row.at, row.kind, row.data))
        seq = rows[-1].seq
        if len(rows) < ENTRIES_AT_ONCE:
            break
    held = {step_id for step_id, step in entry.open.items() if step.claimed_by is not None}
    return record.picture(held, called=await _children(engine, entry.row.task_id) if record.calls else {})


async def _children(engine: Engine, task_id: str) -> dict[str, TaskState]:
    """The states of the tasks that a task has called, by id."""
    of_task = Condition(column="origin", values=(f"child:{task_id}",))
    states: dict[str, TaskState] = {}
    cursor: str | None = None
    while True:
        page = await engine.store.list_tasks(TaskFilter(conditions=(of_task,)), limit=CHILDREN_AT_ONCE, cursor=cursor)
        states.update((row.task_id, TaskState(row.state)) for row in page.rows)
        cursor = page.next
        if cursor is None:
            return states
