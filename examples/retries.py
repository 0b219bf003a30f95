"""What fails is tried again, with growing pauses; what can only fail again is not.

Run it: python examples/retries.py
"""

from __future__ import annotations

import asyncio

from llama_deploy import Deployment, NonRetryableError, ServiceContext, SimpleOrchestrator, TaskFailed, service


@service
async def weather(place: str, context: ServiceContext) -> str:
    """The weather, from a source that is down at first."""
    if place == "nowhere":
        raise NonRetryableError("there is no such place")
    if context.attempt < 3:  # noqa: PLR2004 - the attempt that succeeds
        raise ConnectionError("the weather station does not answer")
    return f"rain in {place}"


async def main() -> None:
    """One task that succeeds in the end, and one that cannot."""
    policy = SimpleOrchestrator(max_retries=3)
    async with Deployment(services=[weather], orchestrator=policy, name="retries") as deployment:
        client = deployment.client
        task_id = await client.submit("weather", place="Bergen")
        print(await client.result(task_id))
        async for entry in client.history(task_id):
            failed = f": {entry.error.type}: {entry.error.message}" if entry.error is not None else ""
            print(f"  {entry.kind}{f', attempt {entry.attempt}' if entry.attempt else ''}{failed}")
        try:
            await client.run("weather", place="nowhere")
        except TaskFailed as failure:
            print(f"{failure.error.type}: {failure.error.message}" if failure.error else failure)


asyncio.run(main())
