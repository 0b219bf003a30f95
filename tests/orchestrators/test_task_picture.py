"""Where tasks stand on the pictures of their orchestrators: done, failed, skipped, how often, and the ways taken."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from llama_deploy import BaseOrchestrator, Deployment, NonRetryableError, RetryPolicy, ServiceContext, service
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import (
    Action,
    Answer,
    Budget,
    Edge,
    Fallback,
    Finish,
    Gate,
    Graph,
    GroupChat,
    Handoff,
    Map,
    Orchestrator,
    Parallel,
    Picture,
    Retry,
    Router,
    Run,
    Saga,
    Sequence,
    Timeout,
    Turn,
    get_result_key,
)
from llama_deploy.orchestrators.task_picture import orchestrator_picture, task_picture
from llama_deploy.types import HistoryEntry, NewTask, TaskDefinition, TaskResult

pytestmark = pytest.mark.anyio


@service
def good(text: Any = None, **more: Any) -> Any:
    """Answers."""
    return text or more


@service
def bad(text: Any = None, **more: Any) -> Any:
    """Fails."""
    raise NonRetryableError("it is broken")


@service(retry=RetryPolicy(initial_s=0.0, jitter=0.0))
def flaky(context: ServiceContext, text: Any = None, **more: Any) -> Any:
    """Fails at first."""
    if context.attempt == 1:
        raise OSError("not yet")
    return text or more


@service
async def slow(text: Any = None, **more: Any) -> Any:
    """Never ends."""
    await asyncio.Event().wait()


@service
def hand(input: Any, **more: Any) -> Any:
    """Hands over to b once."""
    return "done" if more.get("from") == "b" else {"handoff": "b"}


@service
def back(input: Any, **more: Any) -> Any:
    """Hands back."""
    return {"handoff": "a"}


def bool_of_nothing(_: Any) -> bool:
    """Accepts nothing."""
    return False


@service
async def asks(context: ServiceContext, text: Any = None, **more: Any) -> Any:
    """Calls three others."""
    called = [context.call("good", text="a"), context.call("good", text="b"), context.call("bad", text="c")]
    return [str(one) for one in await asyncio.gather(*called, return_exceptions=True)]


@service
async def asks_slow(context: ServiceContext, text: Any = None, **more: Any) -> Any:
    """Calls one that never ends."""
    return await context.call("slow", text="a")


SERVICES = [good, bad, flaky, slow, hand, back, asks, asks_slow]


async def recorded(
    policy: BaseOrchestrator,
    given: Any = "x",
    *,
    answers: tuple[Any, ...] = (),
    until: str = "",
    task: str = "a",
    same: bool = True,
) -> tuple[Picture, list[HistoryEntry]]:
    """The picture of a task that ran to its end, or to the first entry of the kind `until`, as the server draws it."""
    async with Deployment(services=SERVICES, orchestrator=policy, store=":memory:", quiet=True) as deployment:
        client = deployment.client
        task_id = await client.submit(None if task == "a" else task, input=given)
        history, left = [], list(answers)
        async for entry in client.history(task_id, follow=True):
            history.append(entry)
            if entry.state.value == "input_required" and left:
                await client.send_input(task_id, left.pop(0))
            if until in {entry.kind, entry.state.value}:
                break
        picture = await client.graph(task_id)
        if not until:
            assert not same or picture == task_picture(policy, history)
            return picture, history
        await client.cancel(task_id)
        return picture, history


def states(picture: Picture) -> dict[str, str]:
    return {node.name: f"{node.state} {node.figure}".strip() for node in picture.nodes if node.kind != "start"}


def taken(picture: Picture) -> dict[tuple[str, str], int]:
    return {(edge.source, edge.target): edge.taken for edge in picture.edges if edge.taken}


async def test_a_sequence_shows_attempts_and_what_follows() -> None:
    picture, _ = await recorded(Sequence("good", again="flaky"))
    assert states(picture) == {"good": "done", "again": "done attempt 2", "end": "done"}
    assert taken(picture) == {("start", "good"): 1, ("good", "again"): 1, ("again", "end"): 1}
    assert picture.node("again").note == "flaky"
    assert picture.live


async def test_a_failed_one_shows_what_was_never_reached() -> None:
    picture, _ = await recorded(Sequence("good", "bad", after="good"))
    assert states(picture) == {"good": "done", "bad": "failed", "after": "skipped", "end": "failed"}
    assert ("bad", "after") not in taken(picture)


async def test_a_running_task_shows_what_it_waits_for() -> None:
    picture, _ = await recorded(Parallel("good", "slow"), until="answered")
    assert states(picture) == {"good": "done", "slow": "running", "end": ""}
    picture, _ = await recorded(Sequence("good", gate=Gate("Go on?")), until="input_required")
    gate = picture.node("gate")
    assert gate.state == "waiting"
    assert gate.inside is not None
    assert gate.inside.node("ask-0").state == "waiting"
    assert "? a person  waits · Go on?" in picture.lines()


async def test_loops_and_joins_of_a_graph() -> None:
    graph = Graph(
        {"write": "good", "review": "good", "paint": "good", "dead": "good", "publish": "good"},
        [
            ("start", "write"),
            ("start", "paint"),
            ("write", "review"),
            Edge("review", "write", when=lambda _: True, at_most=2),
            Edge("review", "publish", when=lambda _: True, label="good"),
            Edge("review", "dead", when=lambda _: False, label="bad"),
            ("dead", "end"),
            ("paint", "publish"),
            ("publish", "end"),
        ],
    )
    picture, _ = await recorded(graph)
    assert states(picture)["write"] == "done 3 times"
    assert states(picture)["dead"] == "skipped"
    ways = taken(picture)
    assert ways["review", "write"] == 2
    assert ways["paint", "publish"] == 1
    assert ways["review", "publish"] >= 1
    assert ("review", "dead") not in ways


async def test_a_map_says_how_many_of_how_many() -> None:
    picture, _ = await recorded(Map("good", over="items", reduce="good"), {"items": list("abcdefg")})
    assert states(picture)["each"] == "done 7 of 7"
    picture, _ = await recorded(Map(Sequence("good", "flaky"), over="items"), {"items": ["a", "b"]})
    inside = picture.node("each").inside
    assert inside is not None
    assert states(inside)["good"] == "done 2 times"
    assert taken(inside)["good", "flaky"] == 2


async def test_routes_that_were_not_chosen_are_skipped() -> None:
    picture, _ = await recorded(Router(lambda _: "two", {"one": "bad", "two": "good"}))
    assert states(picture) == {"decide": "done", "one": "skipped", "two": "done", "end": "done"}
    assert taken(picture) == {("start", "decide"): 1, ("decide", "two"): 1, ("two", "end"): 1}


async def test_handoffs_are_the_ways_that_were_taken() -> None:
    policy = Handoff({"a": "hand", "b": "back", "c": "bad"})
    assert policy.picture().guessed
    picture, _ = await recorded(policy)
    assert states(picture) == {"a": "done 2 times", "b": "done", "c": "skipped", "end": "done"}
    assert taken(picture) == {("start", "a"): 1, ("a", "b"): 1, ("b", "a"): 1, ("a", "end"): 1}


async def test_turns_of_a_chat_are_their_speakers() -> None:
    picture, _ = await recorded(GroupChat({"one": "good", "two": "good"}, turns_max=3))
    assert states(picture)["one"] == "done 2 times"
    assert taken(picture)["two", "one"] == 1
    assert taken(picture)["one", "end"] == 1


async def test_people_are_asked_again_and_somebody_else_after_them() -> None:
    gate = Gate("Pay?", deadline_s=3600, escalate_to=["the manager"])
    picture, _ = await recorded(gate, answers=("nonsense", "approve"))
    assert states(picture) == {"ask-0": "done 2 times", "ask-1": "skipped", "end": "done"}
    late = Gate("Pay?", deadline_s=0.01, escalate_to=["the manager"], on_deadline="approve")
    picture, _ = await recorded(late)
    assert states(picture) == {"ask-0": "stopped", "ask-1": "stopped", "end": "done"}
    assert taken(picture)["ask-0", "ask-1"] == 1


async def test_wrappers() -> None:
    picture, _ = await recorded(
        Fallback(Retry("good", RetryPolicy(max_retries=1, initial_s=0.0), accept=bool_of_nothing), "good")
    )
    inside = picture.node("retry").inside
    assert states(picture) == {"retry": "failed", "good": "done", "end": "done"}
    assert inside is not None
    assert states(inside)["node"] == "done 2 times"
    assert taken(inside)["node", "node"] == 1
    picture, _ = await recorded(Timeout("slow", 0.01, instead="good"))
    assert states(picture) == {"node": "stopped", "instead": "done", "end": "done"}
    assert taken(picture)["node", "instead"] == 1
    picture, _ = await recorded(Budget(Sequence("good", more="good"), steps=1, at_limit="ask"), answers=("yes",))
    assert states(picture)["more"] == "done"
    assert states(picture)["node"] == "done 2 of 2 steps"


async def test_a_saga_shows_what_was_undone() -> None:
    picture, _ = await recorded(Saga(one=("good", "good"), two=("good", "good"), three=("bad", None)))
    assert states(picture) == {
        "one": "done",
        "two": "done",
        "three": "failed",
        "undo one": "done",
        "undo two": "done",
        "end": "failed",
    }
    assert taken(picture)["three", "undo two"] == 1
    assert taken(picture)["undo two", "undo one"] == 1


class Own(Orchestrator[Any]):
    """Says nothing of its looks."""

    def start(self, turn: Turn[Any]) -> list[Action]:
        """Two at once."""
        return [Run("good", "x"), Run("flaky", "x")]

    def on_answer(self, turn: Turn[Any], answer: Answer) -> list[Action]:
        """One more."""
        turn.notes[answer.tag] = answer.output
        if answer.tag == "last":
            return [Finish("over")]
        return [Run("good", "x", tag="last")] if len(turn.notes) == 2 else []


async def test_one_that_says_nothing_is_drawn_as_what_happened() -> None:
    assert [node.name for node in orchestrator_picture(Own()).nodes] == ["start", "end"]
    picture, _ = await recorded(Own())
    assert states(picture) == {"good": "done 2 times", "flaky": "done attempt 2", "end": "done"}
    assert ("flaky", "good") in taken(picture)
    assert taken(picture)["good", "end"] == 1


class Published(BaseOrchestrator):
    """As they were written before there were tags."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """First `good`, then `flaky`."""
        done = state.get("done", 0)
        if done == 2 or get_result_key(task_def.task_id) in state:
            return [], state
        task = task_def.model_copy(update={"agent_id": ("good", "flaky")[done]})
        return [QueueMessage(type=task.agent_id or "", action="new_task", data=NewTask(task=task).model_dump())], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Count, and keep the last."""
        state["done"] = state.get("done", 0) + 1
        if state["done"] == 2:
            state[get_result_key(result.task_id)] = result
        return state


async def test_a_published_policy_is_drawn_by_its_services() -> None:
    picture, _ = await recorded(Published())
    assert states(picture) == {"good": "done", "flaky": "done attempt 2", "end": "done"}
    assert taken(picture) == {("start", "good"): 1, ("good", "flaky"): 1, ("flaky", "end"): 1}


async def test_what_the_code_of_a_service_calls_stands_beside_it() -> None:
    picture, _ = await recorded(Sequence("asks", "good"), same=False)
    assert states(picture)["call:good"] == "done 2 times"
    assert states(picture)["call:bad"] == "failed"
    assert states(picture)["end"] == "done"
    assert taken(picture)["asks", "call:good"] == 2
    assert ("asks", "call:bad") in taken(picture)
    assert "call:bad" not in {edge.source for edge in picture.edges}
    assert [node.label for node in picture.nodes if node.name.startswith("call:")] == ["good", "bad"]
    for drawn in (picture.svg(), picture.mermaid(), "\n".join(picture.lines())):
        assert "calls" in drawn


async def test_calls_inside_of_a_node_are_drawn_inside_of_it() -> None:
    picture, history = await recorded(Sequence(first=Parallel("asks", "good"), last="good"), same=False)
    inside = picture.node("first").inside
    assert inside is not None
    assert states(inside)["call:bad"] == "failed"
    assert "call:bad" not in states(picture)
    alone = task_picture(Sequence(first=Parallel("asks", "good"), last="good"), history).node("first").inside
    assert alone is not None
    assert states(alone)["call:bad"] == "done", "the history of the caller does not say how a called task has ended"


async def test_a_call_that_is_waited_for_runs() -> None:
    picture, history = await recorded(Sequence("asks_slow"), until="called")
    assert states(picture)["call:slow"] == "running"
    assert states(task_picture(Sequence("asks_slow"), history))["call:slow"] == "running"


def test_a_call_of_a_version_that_did_not_record_the_service_is_drawn_as_well() -> None:
    history = [
        entry(1, "submitted", messages=[message(1, "good", "good")]),
        entry(2, "called", step_id="t:1", service="good", key="#1", child="c"),
    ]
    picture = task_picture(Sequence("good"), history)
    assert states(picture) == {"good": "running", "call:a task": "running", "end": ""}


def entry(seq: int, kind: str, state: str = "working", **more: Any) -> HistoryEntry:
    return HistoryEntry.model_validate({"seq": seq, "at": float(seq), "kind": kind, "state": state, **more})


def message(step: int, service: str, tag: str) -> Mapping[str, Any]:
    return {"step_id": f"t:{step}", "service": service, "action": "new_task", "tag": tag}


async def test_who_works_on_what_tells_what_is_queued() -> None:
    history = [entry(1, "submitted", messages=[message(1, "good", "good"), message(2, "slow", "slow")])]
    picture = task_picture(Parallel("good", "slow"), history, held={"t:2"})
    assert states(picture) == {"good": "queued", "slow": "running", "end": ""}
    history.append(entry(2, "lost", step_id="t:2", service="slow", attempt=1))
    picture = task_picture(Parallel("good", "slow"), history, held=())
    assert states(picture)["slow"] == "queued attempt 2"
    history.append(entry(3, "canceled", "canceled"))
    picture = task_picture(Parallel("good", "slow"), history)
    assert states(picture) == {"good": "stopped", "slow": "stopped attempt 2", "end": "stopped"}


async def test_a_record_of_another_shape_is_drawn_as_far_as_it_goes() -> None:
    history = [
        entry(1, "submitted", messages=[message(1, "good", "gone/good")], state_changes={"own": {"gone/run": "?"}}),
        entry(2, "answered", step_id="t:1", messages=[message(2, "new", "what/is/this")], state_changes={"own": [1]}),
    ]
    picture = task_picture(Handoff({"a": "good"}), history)
    assert picture.svg()
    assert "working" not in states(picture).values()
