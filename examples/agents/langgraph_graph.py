"""A LangGraph graph as a service: it writes a letter, asks whether it may go out, and begins again where it may not.

`python examples/agents/langgraph_graph.py` needs no key: a scripted text stands in. With OPENAI_API_KEY in the
environment the real model writes (OPENAI_MODEL names it).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

from asking import answer_questions
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from openai import AsyncOpenAI
from typing_extensions import TypedDict

from llama_deploy import Deployment
from llama_deploy.services import LangGraphService


class Letter(TypedDict, total=False):
    """What the graph works on."""

    topic: str
    wish: str
    text: str


async def write(state: Letter) -> Letter:
    """A draft; with the person's wish, where there is one."""
    wish = state.get("wish", "")
    if not os.environ.get("OPENAI_API_KEY"):
        return {"text": f"Dear all, {state['topic']}.{' ' + wish + '!' if wish else ''}"}
    request: Any = {"role": "user", "content": f"One sentence of a letter about {state['topic']}. {wish}"}
    model = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
    answer = await AsyncOpenAI().chat.completions.create(model=model, messages=[request])
    return {"text": answer.choices[0].message.content or ""}


def check(state: Letter) -> Command[Literal["write", "__end__"]]:
    """A person decides; everything may stop and start again while they think."""
    said = interrupt({"question": f"May this go out? {state['text']}"})
    if said == "yes":
        return Command(goto="__end__")
    return Command(goto="write", update={"wish": said})


graph = StateGraph(Letter)
graph.add_node("write", write)
graph.add_node("check", check)
graph.add_edge(START, "write")
graph.add_edge("write", "check")

letters = LangGraphService(graph.compile(name="letters"), output="text")


async def main() -> None:
    """One letter, which is sent back once."""
    answers = iter(["be brief", "yes"])
    async with Deployment(services=[letters], store=":memory:", quiet=True) as deployment:
        task_id = await deployment.submit("letters", topic="the tide is high")
        await answer_questions(deployment.client, task_id, lambda _: next(answers))
        print("sent:", await deployment.client.result(task_id))


if __name__ == "__main__":
    asyncio.run(main())
