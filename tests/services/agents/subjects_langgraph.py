"""The LangGraph graphs that the tests of this folder serve, and that processes serve in tests/processes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict


class Draft(BaseModel):
    """A class in a state."""

    words: str


@dataclass
class Mark:
    """Another one."""

    points: int


class Letter(TypedDict, total=False):
    """The state of `letters`."""

    topic: str
    draft: Draft
    marks: Annotated[list[Mark], operator.add]
    sent: str
    hidden: Any


def letters(ran: Callable[[str], None] = lambda _: None) -> StateGraph[Any, Any, Any, Any]:
    """Writes, is marked by two people at once, and asks a third one."""
    graph = StateGraph(Letter)

    def write(state: Letter) -> Letter:
        ran("write")
        return {"draft": Draft(words=f"about {state['topic']}")}

    def marker(name: str) -> Any:
        def mark(state: Letter) -> Letter:
            return {"marks": [Mark(int(interrupt({"question": f"{name}: how many points?"})))]}

        return mark

    def send(state: Letter) -> Letter:
        ran("send")
        to = interrupt("To whom?")
        return {"sent": f"{state['draft'].words} to {to} ({sum(mark.points for mark in state['marks'])})"}

    graph.add_node("write", write)
    graph.add_node("first", marker("first"))
    graph.add_node("second", marker("second"))
    graph.add_node("send", send)
    graph.add_edge(START, "write")
    graph.add_edge("write", "first")
    graph.add_edge("write", "second")
    graph.add_edge(["first", "second"], "send")
    graph.add_edge("send", END)
    return graph


def chat() -> Any:
    """A graph of messages."""
    graph = StateGraph(MessagesState)
    graph.add_node("echo", lambda state: {"messages": [AIMessage(str(state["messages"][-1].content).upper())]})
    graph.add_edge(START, "echo")
    graph.add_edge("echo", END)
    return graph.compile(name="chat")
