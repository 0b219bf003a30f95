"""The catalogue: group chats, plans, gates for people, and the wrappers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llama_deploy.orchestrators import (
    Budget,
    Cache,
    Fallback,
    Gate,
    GroupChat,
    Orchestrator,
    Parallel,
    Planner,
    Retry,
    Saga,
    Sequence,
    Timeout,
    Transcript,
    Vote,
)
from llama_deploy.testing.orchestrator_play import Play, play
from llama_deploy.types import RetryPolicy, TaskDefinition, TaskResult

pytestmark = pytest.mark.anyio


def up(text: str) -> str:
    return text.upper()


def bang(text: str) -> str:
    return text + "!"


def broken(text: str = "") -> str:
    raise ValueError(f"no {text}")


SERVICES: dict[str, Callable[..., Any]] = {"up": up, "bang": bang, "broken": broken}


async def run(
    policy: Orchestrator[Any], given: Any = "tide", people: Callable[[dict[str, Any]], Any] | None = None, **more: Any
) -> Play:
    return await play(policy, {**SERVICES, **more}, given, people=people)


def why(played: Play) -> str:
    assert played.outcome is not None
    assert played.outcome.status == "failed"
    assert played.outcome.error is not None
    return played.outcome.error.message


# --- group chat -----------------------------------------------------------------------------------------------------


def speaker(name: str) -> Callable[..., str]:
    def speak(topic: str, turns: list[dict[str, Any]], first: int) -> str:
        return f"{name} on {topic} has heard {[turn['said'].split()[0] for turn in turns]} from {first}"

    return speak


async def test_participants_speak_in_turn_and_hear_what_is_new() -> None:
    chat = GroupChat({"anna": "anna", "ben": "ben"}, turns_max=4)
    seen = await run(chat, anna=speaker("anna"), ben=speaker("ben"))
    assert [event["said"] for event in seen.events] == [
        "anna on tide has heard [] from 0",
        "ben on tide has heard ['anna'] from 0",
        "anna on tide has heard ['ben'] from 1",
        "ben on tide has heard ['anna'] from 2",
    ]
    assert seen.output == seen.events[-1]["said"]


async def test_a_long_chat_costs_linear_bytes() -> None:
    sizes = {}
    for turns in (20, 200):
        chat = GroupChat({"anna": "anna", "ben": "ben"}, turns_max=turns)
        seen = await run(chat, anna=lambda **_: "x" * 100, ben=lambda **_: "y" * 100)
        sizes[turns] = sum(len(str(message.data)) for message in seen.sent)
    assert sizes[200] < 11 * sizes[20]


async def test_a_function_or_a_chair_selects_and_an_end_is_found() -> None:
    def longest(transcript: Transcript, names: list[str]) -> str:
        return names[len(transcript) % 2] if len(transcript) < 2 else names[0]

    enough = GroupChat({"anna": "anna", "ben": "ben"}, select=longest, until=lambda told: len(told) == 3)
    seen = await run(enough, anna=speaker("anna"), ben=speaker("ben"))
    assert [event["speaker"] for event in seen.events] == ["anna", "ben", "anna"]

    def chair(turns: list[Any], participants: list[str], first: int, **_: Any) -> Any:
        said = first + len(turns)
        return {"end": "enough"} if said == 3 else {"next": participants[said % 2]}

    led = GroupChat({"anna": "anna", "ben": "ben"}, select="chair", conclude="sum")
    seen = await run(
        led, chair=chair, anna=speaker("anna"), ben=speaker("ben"), sum=lambda topic, turns: f"{topic}: {len(turns)}"
    )
    assert seen.output == "tide: 3"
    assert why(await run(led, chair=lambda **_: "carl")) == "'carl' is none of the participants: anna, ben"


# --- planner --------------------------------------------------------------------------------------------------------


def planner(done: list[Any], **_: Any) -> dict[str, Any]:
    return {"plan": ["look", "write"], "facts": len(done)}


async def test_a_plan_is_carried_out_and_judged() -> None:
    def judge(done: list[Any], workers: list[str], **_: Any) -> Any:
        if done and done[-1]["worker"] == "writer":
            return {"finished": True, "output": done[-1]["answer"]}
        return {"worker": workers[len(done)], "input": "the sea"}

    policy = Planner("planner", {"looker": "up", "writer": "bang"}, judge="judge")
    seen = await run(policy, planner=planner, judge=judge)
    assert seen.output == "the sea!"
    assert seen.services == ["planner", "judge", "up", "judge", "bang", "judge"]


async def test_a_stuck_plan_is_made_anew_and_bounds_hold() -> None:
    def stuck(**_: Any) -> Any:
        return {"worker": "looker", "input": "x", "progress": False}

    policy = Planner("planner", {"looker": "broken"}, judge="judge", stalls_max=1, resets_max=1)
    seen = await run(policy, planner=planner, judge=stuck)
    assert why(seen) == "stuck, with 1 new plans made"
    assert seen.services.count("planner") == 2
    busy = Planner("planner", {"looker": "up"}, judge="judge", rounds_max=3)
    assert (
        why(await run(busy, planner=planner, judge=lambda **_: {"worker": "looker"})) == "not finished after 3 rounds"
    )
    assert why(await run(busy, planner=planner, judge=lambda **_: {"worker": "me"})) == (
        "'me' is none of the workers: looker"
    )
    assert why(await run(busy, planner=planner, judge=lambda **_: "hm")) == "the judge answered 'hm', not an object"


# --- gates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [True, "approve", " Yes", {"decision": "approve"}])
async def test_what_is_approved_goes_on(answer: Any) -> None:
    seen = await run(Sequence("up", Gate("send it?"), "bang"), people=lambda _: answer)
    assert seen.output == "TIDE!"
    assert seen.asked[0] == {"prompt": "send it?", "value": "TIDE", "decisions": ["approve", "reject", "edit"]}


async def test_what_is_rejected_does_not() -> None:
    refuse = {"decision": "reject", "reason": "too loud"}
    assert why(await run(Sequence("up", Gate()), people=lambda _: refuse)) == "rejected: too loud"
    assert why(await run(Gate(), people=lambda _: False)) == "rejected: no reason was given"
    kept = await run(Sequence("up", Gate(on_reject="output")), people=lambda _: refuse)
    assert kept.output == {"rejected": "too loud"}


async def test_edits_choices_and_a_second_question_after_nonsense() -> None:
    assert (await run(Gate(), people=lambda _: {"decision": "edit", "value": "ebb"})).output == "ebb"
    answers = iter(["blue", {"decision": "approve"}, "red"])
    seen = await run(Gate("which?", choices=["red", "green"]), people=lambda _: next(answers))
    assert seen.output == "red"
    assert [prompt.get("problem") for prompt in seen.asked] == [
        None,
        "'blue' is no answer to this question",
        "\"{'decision': 'approve'}\" is no answer to this question",
    ]


class Silent(Exception):  # noqa: N818 - it is the absence of an answer
    """Nobody answers."""


async def test_silence_escalates_and_then_means_what_was_said() -> None:
    week = 7 * 86_400.0
    patient = Gate(ask="anna", escalate_to=["ben"], deadline_s=week, on_deadline="approve")
    seen = await play(Sequence("up", patient), SERVICES, "tide", people=lambda _: Ellipsis)
    assert seen.output == "TIDE"
    assert [prompt["to"] for prompt in seen.asked] == ["anna", "ben"]
    assert seen.waited_s == 2 * week
    for meaning, told in [
        ("fail", f"nobody answered within {week:g} s"),
        ("reject", "rejected: nobody answered in time"),
    ]:
        gate = Gate(deadline_s=week, on_deadline=meaning)  # type: ignore[arg-type]
        assert why(await play(gate, SERVICES, "tide", people=lambda _: Ellipsis)) == told
    with pytest.raises(ValueError, match="needs a deadline_s"):
        Gate(escalate_to=["ben"])


# --- wrappers -------------------------------------------------------------------------------------------------------


def failing(times: int) -> Callable[[str], str]:
    left = [times]

    def serve(text: str) -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise ValueError("not yet")
        return text

    return serve


async def test_a_node_is_tried_again_with_pauses() -> None:
    policy = RetryPolicy(max_retries=2, initial_s=10.0, multiplier=2.0)
    seen = await run(Retry(Sequence("up", "flaky"), policy), flaky=failing(2))
    assert seen.output == "TIDE"
    assert seen.waited_s == 30.0
    assert why(await run(Retry("flaky", policy), flaky=failing(3))) == "not yet"
    picky = Retry("up", RetryPolicy(max_retries=1), accept=lambda output: output == "no")
    assert why(await run(picky)) == "no answer was accepted in 2 tries"


async def test_the_next_node_when_one_fails() -> None:
    assert (await run(Fallback("broken", Sequence("broken", "up"), "bang"))).output == "tide!"
    assert why(await run(Fallback("broken", other="broken"))) == "no tide"


async def test_too_slow_is_taken_back() -> None:
    slow = Sequence(Gate("hurry"), "up")
    seen = await play(Timeout(slow, 60.0, instead="bang"), SERVICES, "tide", people=lambda _: Ellipsis)
    assert seen.output == "tide!"
    assert seen.taken_back == ["node/gate/ask-1"]
    assert why(await play(Timeout(slow, 60.0), SERVICES, "tide", people=lambda _: Ellipsis)) == "not done within 60 s"
    assert (await run(Timeout("up", 60.0))).output == "TIDE"


async def test_a_budget_of_steps_ends_or_asks() -> None:
    def join(**parts: str) -> str:
        return " ".join(parts.values())

    work = Sequence("up", Parallel("bang", "up"), "join")
    assert why(await run(Budget(work, steps=2), join=join)) == "3 steps of 2 are used"
    assert (await run(Budget(work, steps=4), join=join)).output == "TIDE! TIDE"
    seen = await run(Budget(work, steps=2, at_limit="ask"), people=lambda _: True, join=join)
    assert seen.output == "TIDE! TIDE"
    assert [prompt["prompt"] for prompt in seen.asked] == ["3 steps of 2 are used. Go on?"]
    told = "the budget is used up, and nobody agreed to more"
    assert why(await run(Budget(work, steps=2, at_limit="ask"), people=lambda _: "no", join=join)) == told
    assert why(await run(Budget("up", steps=0))) == "1 steps of 0 are used"


async def test_a_budget_counts_what_services_say_they_used_also_while_it_waits_for_a_person() -> None:
    policy = Budget(Parallel("up", "bang", third="up"), at_limit="ask", tokens=10.0)
    task = TaskDefinition(input="tide", task_id="t1")

    def answer(tag: str, **fields: Any) -> TaskResult:
        about = {"history": [], "result": tag, "tag": tag, "service": tag.rpartition("/")[2]}
        return TaskResult(task_id="t1", **{**about, "data": {"usage": {"tokens": 8, "model": "x"}}, **fields})

    messages, state = await policy.get_next_messages(task, {})
    told: list[list[str]] = []
    person = answer("more-1", service="__person__", kind="json", value=True, data={})
    for result in [answer("node/up"), answer("node/bang"), answer("node/third"), person]:
        state = await policy.add_result_to_state(result, json.loads(json.dumps(state)))
        messages, state = await policy.get_next_messages(task, state)
        told.append([message.data.get("prompt") or str(message.action) for message in messages])
    # The third answer waits behind the second; with another helping agreed to, it is over the limit itself.
    assert told == [[], ["16 tokens of 10 are used. Go on?"], [], ["24 tokens of 20 are used. Go on?"]]


async def test_the_same_input_is_worked_on_once() -> None:
    calls: list[str] = []

    def count(text: str) -> str:
        calls.append(text)
        return text + "."

    seen = await run(Sequence(Cache("count"), a=Cache("count", key=lambda _: "same")), count=count)
    assert seen.output == "tide.."
    policy = Sequence(a=Cache("count", key=len), b=Cache("count", key=lambda text: len(text) - 1))
    calls.clear()
    assert (await run(policy, count=count)).output == "tide."
    assert calls == ["tide"]


async def test_the_majority_of_several_answers() -> None:
    answers = iter(["a", "b", "a"])
    assert (await run(Vote("judge", 3), judge=lambda _: next(answers))).output == "a"


async def test_a_saga_undoes_what_was_done() -> None:
    undone: list[Any] = []

    def undo(output: str, **_: Any) -> None:
        undone.append(output)

    def book(input: str, done: dict[str, Any]) -> str:
        return f"{input}-{len(done)}"

    def fail(**_: Any) -> str:
        raise ValueError("sold out")

    steps: dict[str, Any] = {"train": ("book", "undo"), "hotel": ("book", Sequence("undo"))}
    seen = await run(Saga(**steps), book=book, undo=undo)
    assert seen.output == {"train": "tide-0", "hotel": "tide-1"}
    assert not undone
    assert why(await run(Saga(**steps, museum=("fail", None)), book=book, undo=undo, fail=fail)) == "sold out"
    assert undone == ["tide-1", "tide-0"]
