"""Fills a store with finished tasks: `python -m benchmarks.ours.fill STORE COUNT`.

The rows are those of a task that the system itself has finished and that stands in the store already, under further
ids, and they go in through the store's own contract. So what is measured afterwards meets what a million tasks leave
behind, without having waited for a million tasks.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop

from llama_deploy.errors import LlamaDeployError
from llama_deploy.state_stores import PostgresStore, SQLiteStore
from llama_deploy.state_stores.base import DeliveryRow, HistoryRow, TaskFilter, TaskRow, Transition
from llama_deploy.types import generate_id

AHEAD = 5_000
"""Tasks handed to the store before waiting for it."""


async def fill(name: str, count: int) -> None:
    """Write `count` tasks like the newest one of the store, a file or the URL of a database."""
    store = PostgresStore(name) if "://" in name else SQLiteStore(Path(name))
    await store.open()
    try:
        listed = await store.list_tasks(TaskFilter(), limit=1)
        row = listed.rows[0]
        history = await store.load_history(row.task_id)
        for first in range(0, count, AHEAD):
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            for number in range(min(AHEAD, count - first)):
                for transition in copies(row, history, generate_id(), age_s=float(count - first - number) / 1000):
                    store.record(transition)
            transition.settled = lambda error, done=done: settle(done, error)
            await done
    finally:
        await store.close()


def copies(row: TaskRow, history: list[HistoryRow], task_id: str, *, age_s: float) -> list[Transition]:
    """The transitions that record a task as another one was: its beginning, and its end."""
    at = row.created_at - age_s
    step_id = f"{task_id}:1"
    entries = [
        msgspec.structs.replace(
            entry, task_id=task_id, at=at, data=entry.data.replace(row.task_id.encode(), task_id.encode())
        )
        for entry in history
    ]
    named = msgspec.structs.replace(row, task_id=task_id, session_id=task_id, created_at=at, updated_at=at)
    begun = msgspec.structs.replace(named, state="working", version=1, ended_at=None)
    ended = msgspec.structs.replace(named, version=len(entries), ended_at=at)
    return [
        Transition(
            settled=check,
            task=begun,
            expected_version=0,
            entry=entries[0],
            sent=[DeliveryRow(step_id, task_id, row.service, 1, at, 1, 0)],
        ),
        Transition(settled=check, task=ended, expected_version=1, entry=entries[-1], answered=[step_id]),
    ]


def check(error: LlamaDeployError | None) -> None:
    """Whatever is refused is a defect."""
    if error is not None:
        raise error


def settle(done: asyncio.Future[None], error: LlamaDeployError | None) -> None:
    """The last one of many is recorded."""
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


if __name__ == "__main__":
    uvloop.run(fill(sys.argv[1], int(sys.argv[2])))
