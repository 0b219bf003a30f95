"""`kill -9` between the end of a task and the request to its webhook, with real processes."""

from __future__ import annotations

import pytest
from tests.processes.children import System
from tests.support import PROCESS_S, eventually
from tests.support.receiver import receiving

pytestmark = pytest.mark.slow


async def test_the_end_of_every_task_is_told_though_the_control_plane_is_killed(system: System) -> None:
    async with receiving() as receiver:
        await system.start()
        receiver.answers = ["hang"] * 3
        options = {"webhook": {"url": receiver.url}}
        ids = [f"task-{number}" for number in range(12)]
        async with system.client() as client:
            for number, task_id in enumerate(ids):
                await client.run("double", number=number, task_id=task_id, options=options)
            await eventually(lambda: receiver.waiting == 3, PROCESS_S)
            await system.plane.kill()
            await system.start_plane()

            def told() -> set[str]:
                return {request.event["data"]["task_id"] for request in receiver.received}

            async def delivered() -> bool:
                views = [(await client.get_task(task_id)).webhook for task_id in ids]
                return all(view is not None and view.state == "delivered" for view in views)

            await eventually(delivered, PROCESS_S)
            assert told() == set(ids)
            by_task: dict[str, set[str]] = {}
            for request in receiver.received:
                by_task.setdefault(request.event["data"]["task_id"], set()).add(request.headers["webhook-id"])
            assert all(len(message_ids) == 1 for message_ids in by_task.values())
