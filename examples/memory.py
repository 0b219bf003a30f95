"""A conversation that is remembered: across tasks, across a restart of everything, and by nobody else.

A service with `memory="session"` has a JSON object of its own for every session; it is recorded with each answer.
Run it: python examples/memory.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from llama_deploy import Deployment, ServiceContext, service


@service(memory="session")
async def guide(text: str, context: ServiceContext) -> str:
    """Knows what was said before in the same session."""
    name = context.memory.get("name")
    context.memory["turns"] = context.memory.get("turns", 0) + 1
    if text.startswith("I am "):
        context.memory["name"] = text.removeprefix("I am ")
        return f"Hello {context.memory['name']}."
    return f"{name or 'Stranger'}, that was turn {context.memory['turns']}."


async def main() -> None:
    """Two conversations, and a restart in the middle."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "memory.db"
        async with Deployment(services=[guide], store=store, quiet=True) as deployment:
            print("one:", await deployment.run("guide", text="I am Ada", session_id="one"))
            print("two:", await deployment.run("guide", text="Who am I?", session_id="two"))
        print("everything is switched off, and on again")
        async with Deployment(services=[guide], store=store, quiet=True) as deployment:
            print("one:", await deployment.run("guide", text="Who am I?", session_id="one"))
            print("remembered:", await deployment.client.get_session_memory("one"))
            await deployment.client.clear_session_memory("one")
            print("one:", await deployment.run("guide", text="Who am I?", session_id="one"))


asyncio.run(main())
