"""Whatever dies at whatever hop of whatever pattern: the outcome is the same as without.

Each pattern runs once undisturbed. Then it runs again for every entry of its history: when that entry is recorded, the
control plane vanishes, or the instance that serves everything does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.control_plane.harness import LinkedRunner, World, history, outcome, submit, until, world
from tests.support import DEADLINE_S

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import NonRetryableError
from llama_deploy.orchestrators import (
    BaseOrchestrator,
    Budget,
    Cache,
    Edge,
    Fallback,
    Gate,
    Graph,
    GroupChat,
    Handoff,
    Map,
    Parallel,
    Planner,
    Retry,
    Router,
    Saga,
    Sequence,
    SimpleOrchestrator,
    Timeout,
    Vote,
)
from llama_deploy.services import service
from llama_deploy.state_stores import MemoryStore
from llama_deploy.types import RetryPolicy, TaskResult

pytestmark = pytest.mark.anyio


@service
def up(text: str) -> str:
    """Louder."""
    return text.upper()


@service
def bang(text: str) -> str:
    """With an exclamation mark."""
    return text + "!"


@service
def broken(text: str) -> str:
    """Never works."""
    raise NonRetryableError(f"no {text}")


@service
def merge(up: str, bang: str) -> str:
    """Both parts."""
    return f"{up} {bang}"


@service
def triage(input: Any, **_: Any) -> Any:
    """Hands over."""
    return {"handoff": "billing", "input": [input]}


@service
def billing(input: Any, **_: Any) -> Any:
    """Answers."""
    return {"paid": input}


@service
def speak(turns: list[Any], first: int, **_: Any) -> str:
    """Counts what it hears."""
    return f"{first}+{len(turns)}"


@service
def plan(done: list[Any], **_: Any) -> Any:
    """The plan."""
    return {"plan": ["look"], "facts": len(done)}


@service
def judge(done: list[Any], **_: Any) -> Any:
    """Finished once something was done."""
    return {"finished": True, "output": done} if done else {"worker": "looker", "input": "sea"}


@service
def book(input: str, done: dict[str, Any]) -> str:
    """Books one thing."""
    return f"{input}{len(done)}"


@service
def cancel(output: str, **_: Any) -> str:
    """Takes a booking back."""
    return output


@service
def score(text: str) -> Any:
    """How long it is."""
    return {"text": text, "score": len(text)}


@service
def grow(text: str, **_: Any) -> str:
    """Longer."""
    return text + text


SERVICES = [up, bang, broken, merge, triage, billing, speak, plan, judge, book, cancel, score, grow]

PATTERNS: dict[str, Callable[[], BaseOrchestrator]] = {
    "simple": lambda: SimpleOrchestrator(final_message_type=None),
    "sequence": lambda: Sequence("up", "bang", Sequence("bang", "up")),
    "parallel": lambda: Sequence(Parallel("up", "bang"), "merge"),
    "first": lambda: Sequence(Parallel("broken", also=Sequence("broken"), good="up", want="any"), "bang"),
    "quorum": lambda: Parallel("up", "bang", third="up", want="quorum"),
    "map": lambda: Map(Sequence("up", "bang"), over="items", at_once=2, reduce="score"),
    "graph": lambda: Graph(
        {"score": "score", "grow": "grow", "up": "up"},
        [
            ("start", "score"),
            Edge("score", "grow", when=lambda found: found["score"] < 12),
            Edge("grow", "score", at_most=3),
            Edge("score", "end", when=lambda found: found["score"] >= 12),
            ("start", "up"),
            ("up", "end"),
        ],
    ),
    "router": lambda: Router(lambda given: "loud", {"loud": "up", "quiet": "bang"}),
    "handoff": lambda: Handoff({"triage": "triage", "billing": "billing"}),
    "group chat": lambda: GroupChat({"anna": "speak", "ben": "speak"}, turns_max=5),
    "planner": lambda: Planner("plan", {"looker": "up"}, judge="judge"),
    "gate": lambda: Sequence("up", Gate("may it?"), "bang"),
    "retry": lambda: Retry(Sequence("up", "broken"), RetryPolicy(max_retries=2, initial_s=0.0)),
    "fallback": lambda: Fallback("broken", Sequence("broken"), "up"),
    "timeout": lambda: Timeout(Sequence(Gate("never answered")), 0.05, instead="up"),
    "budget": lambda: Budget(Sequence("up", "bang", "up"), steps=2, at_limit="ask"),
    "cache": lambda: Sequence(Cache("up", key=len), again=Cache("up", key=len)),
    "vote": lambda: Vote("up", 3),
    "saga": lambda: Saga(train=("book", "cancel"), hotel=("book", "cancel"), museum=("broken", None)),
}
INPUTS = {"map": json.dumps({"items": ["a", "b", "c", "d"]})}
ANSWERS = {"may it?": {"decision": "edit", "value": "ebb"}, "3 steps of 2 are used. Go on?": True}
SETTINGS = EngineSettings(recovery_grace_s=0.0, reconnect_grace_s=0.0)


async def answer_people(here: World, task_id: str) -> None:
    """Somebody answers whatever is asked, whenever it is asked; silence where there is no answer."""
    entry = await here.plane.engine.cache.get(task_id)
    for step in list(entry.open.values()):
        prompt = json.loads(step.prompt)["prompt"] if step.asking and step.prompt else None
        if prompt in ANSWERS and entry.settled_seq == entry.row.version:
            await here.plane.signals.send_input(task_id, ANSWERS[prompt], step_id=step.step_id)


async def play(pattern: str, *, dies: str | None = None, at: int = 0) -> tuple[TaskResult, int]:
    """One run; who `dies` does so when entry number `at` is recorded. The outcome, and how long the history is."""
    async with world(MemoryStore(), orchestrator=PATTERNS[pattern](), settings=SETTINGS) as here:
        runner = LinkedRunner(SERVICES)
        await runner.connect(here.plane)
        text = INPUTS.get(pattern, "tide")
        task_id = (await submit(here.plane, "up", text, session_id="s")).row.task_id
        died = dies is None
        async with asyncio.timeout(DEADLINE_S):
            while True:
                entry = await here.plane.engine.cache.get(task_id)
                if not died and entry.settled_seq >= at:
                    died = True
                    if dies == "control plane":
                        await here.crash()
                        await here.start()
                    else:
                        runner.die()
                        runner = LinkedRunner(SERVICES, instance_id="second")
                    await runner.connect(here.plane)
                    continue
                if entry.ended:
                    break
                await answer_people(here, task_id)
                seen = entry.settled_seq
                await until_or_short(lambda e=entry, s=seen: e.settled_seq > s or e.ended)  # type: ignore[misc]
        result = await outcome(here.plane, task_id)
        entries = await history(here.plane, task_id)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        await until(lambda: not here.plane.engine.store.backlog)
        assert not await here.plane.store.load_deliveries(task_id)
        runner.die()
        return result, len(entries)


async def until_or_short(condition: Callable[[], bool]) -> None:
    """Let things happen until something has, or people should be asked again."""
    for _ in range(50):
        if condition():
            return
        await asyncio.sleep(0)


def comparable(result: TaskResult) -> Any:
    message = result.error.message if result.error is not None else ""
    return result.status, result.output if result.status == "completed" else message


@pytest.mark.parametrize("dies", ["control plane", "instance"])
@pytest.mark.parametrize("pattern", PATTERNS)
async def test_the_outcome_is_the_same_whatever_dies_at_whatever_hop(pattern: str, dies: str) -> None:
    expected, entries = await play(pattern)
    assert expected.status == ("failed" if pattern in {"retry", "saga"} else "completed"), expected
    for at in range(1, entries + 1):
        result, _ = await play(pattern, dies=dies, at=at)
        assert comparable(result) == comparable(expected), at
