"""What a service yields is a stream that anyone may read, at any time, from any event on.

Run it: python examples/streaming.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from llama_deploy import Deployment, service


@service
async def countdown(start: int) -> AsyncIterator[int]:
    """Count down to one."""
    for number in range(start, 0, -1):
        yield number
        await asyncio.sleep(0.05)  # where a model would think of its next word


async def main() -> None:
    """Read two events, go away, come back for the rest."""
    async with Deployment(services=[countdown], name="streaming") as deployment:
        client = deployment.client
        task_id = await client.submit("countdown", start=5)
        async for event in client.stream(task_id):
            print(f"event {event.index}: {event.data}")
            if event.index == 1:
                print("the reader goes away; events are recorded all the same")
                break
        async for event in client.stream(task_id, first=2):
            print(f"event {event.index}: {event.data}")
        print(f"result: {await client.result(task_id)}")


asyncio.run(main())
