"""A service asks a person and waits for the answer; on a terminal that person is you.

While it waits, the task is `input_required`: also after a restart, for days if need be. An answer may come from here,
from the command line (`llamactl tasks send`) or over HTTP. Run it: python examples/human_in_the_loop.py
"""

from __future__ import annotations

import asyncio
import sys

from llama_deploy import Deployment, ServiceContext, service


@service
async def publish(headline: str, context: ServiceContext) -> str:
    """Publish a headline, if a person says so."""
    answer = await context.ask(f"Publish {headline!r}?")
    return f"published: {headline}" if answer == "yes" else f"dropped, because the editor says {answer!r}"


async def person(question: str) -> str:
    """What the person at the terminal says; where there is none, always yes."""
    if sys.stdin.isatty():
        return await asyncio.to_thread(input, f"{question} (yes, or why not) ")
    print(f"{question} yes")
    return "yes"


async def main() -> None:
    """Submit one task, and answer what it asks."""
    async with Deployment(services=[publish], name="human") as deployment:
        client = deployment.client
        task_id = await client.submit("publish", headline="Snow at noon")
        async for entry in client.history(task_id, follow=True):
            if entry.kind == "input_requested":
                print(f"the task is {entry.state.value}")
                await client.send_input(task_id, await person(entry.prompt["prompt"]))
        print(await client.result(task_id))


asyncio.run(main())
