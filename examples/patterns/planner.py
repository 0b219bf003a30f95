"""Planner: a plan is made, workers carry it out, a judge says when it is done; stuck, the plan is made anew."""

from __future__ import annotations

from typing import Any

from model import complete
from show import show

from llama_deploy import service
from llama_deploy.orchestrators import Planner


@service
async def planner(goal: str, workers: list[str], done: list[Any], **_: Any) -> dict[str, Any]:
    """A plan in words; the second one knows what did not work."""
    words = "measure, then write" if done else "look it up, then write"
    return {"plan": await complete(f"Plan {goal} for {workers}, knowing {done}", otherwise=words), "facts": len(done)}


@service
def judge(plan: str, done: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
    """What is next: by the plan, and by what was done since the last time."""
    last = done[-1] if done else {"worker": "", "answer": ""}
    if last["worker"] == "writer":
        return {"finished": True, "output": last["answer"]}
    if last["worker"] == "gauge":
        return {"worker": "writer", "input": str(last["answer"])}
    return {"worker": "library" if "look" in plan else "gauge", "input": "the tide", "progress": not done}


@service
def library(what: str) -> str:
    """Has nothing on it."""
    return f"nothing on {what}"


@service
def gauge(what: str) -> str:
    """Measures."""
    return f"{what} stands at 3.2 m"


@service
def writer(fact: str) -> str:
    """Writes it down."""
    return f"Today {fact}."


policy = Planner(
    "planner", {"library": "library", "gauge": "gauge", "writer": "writer"}, judge="judge", stalls_max=1, resets_max=1
)
show(policy, [planner, judge, library, gauge, writer], "how high is the tide?")
