"""An instance with an agent as a program: `library_agent_program.py URL SINK AGENT`.

The models are scripted and decide by what they have heard, so that whichever process goes on does the same. What is
done outside is one line of the file SINK. Only the library of the AGENT is imported.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import uvloop
from tests.support import eventually

from llama_deploy.services import ServiceAsTool, ServiceContext, serve_services, service

# This folder has a module `agents`, which would stand before the SDK of that name.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]  # noqa: PTH100, PTH120
SINK = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
OPEN = f"{sys.argv[2]}.open"


def effect(name: str) -> None:
    """What happens outside; one `write` to an appended file is never torn."""
    os.write(SINK, f"{name}\n".encode())


@service
async def look_up(context: ServiceContext, word: str) -> str:
    """What a word means."""
    effect(f"look_up:{context.attempt}")
    return f"{word} means tide"


async def linger(word: str) -> str:
    """Takes its time, until the file is there."""
    effect("linger")
    await eventually(lambda: os.path.exists(OPEN), 600)  # noqa: PTH110 - no blocking call to speak of
    return f"lingered over {word}"


ASKED = [("look_up", {"word": "hav"}), ("linger", {"word": "hav"})]


def clerk() -> Any:
    """Of pydantic-ai; asks whether it may delete."""
    from tests.services.agents.subjects_pydantic_ai import clerk as made

    return made()


def reader() -> Any:
    """Of pydantic-ai; calls another service, then lingers."""
    from pydantic_ai import Agent
    from tests.services.agents.subjects_pydantic_ai import calls_in_order

    return Agent(calls_in_order(*ASKED), name="reader", tools=[ServiceAsTool(look_up), linger])


def officer() -> Any:
    """Of the OpenAI Agents SDK; asks whether it may delete."""
    from tests.services.agents.subjects_openai_agents import officer as made

    return made()


def investigator() -> Any:
    """Of the OpenAI Agents SDK; calls another service, then lingers."""
    import agents
    from tests.services.agents.subjects_openai_agents import scripted

    tools: list[Any] = [ServiceAsTool(look_up).for_openai_agents(), agents.function_tool(linger)]
    return agents.Agent(name="investigator", tools=tools, model=scripted(*ASKED))


def letters() -> Any:
    """A graph of LangGraph that asks three people."""
    from tests.services.agents.subjects_langgraph import letters as made

    from llama_deploy.services import LangGraphService

    return LangGraphService(made(effect).compile(name="letters"), output="sent")


AGENTS: dict[str, Callable[[], Any]] = {made.__name__: made for made in (clerk, reader, officer, investigator, letters)}


async def main() -> bool:
    served = [AGENTS[sys.argv[3]](), look_up]
    return await serve_services(served, control_plane_url=sys.argv[1], drain_timeout_s=20.0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(0 if runner.run(main()) else 4)
