"""The catalogue: what each orchestrator sends, how it folds, how it ends. The state goes through JSON every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llama_deploy.orchestrators import Handoff, Map, Orchestrator, Parallel, Router, Sequence
from llama_deploy.testing.orchestrator_play import Play, play

pytestmark = pytest.mark.anyio


def up(text: str) -> str:
    return text.upper()


def bang(text: str) -> str:
    return text + "!"


def broken(text: str = "") -> str:
    raise ValueError(f"no {text}")


SERVICES: dict[str, Callable[..., Any]] = {"up": up, "bang": bang, "broken": broken}


async def run(policy: Orchestrator[Any], given: Any = "tide", seed: int | None = None, **services: Any) -> Play:
    return await play(policy, {**SERVICES, **services}, given, seed=seed)


def why(played: Play) -> str:
    assert played.outcome is not None
    assert played.outcome.status == "failed"
    assert played.outcome.error is not None
    return played.outcome.error.message


# --- sequence -------------------------------------------------------------------------------------------------------


async def test_a_sequence_passes_each_output_on() -> None:
    seen = await run(Sequence("up", "bang", "bang"))
    assert seen.output == "TIDE!!"
    assert [message.tag for message in seen.sent] == ["up", "bang", "bang-2"]


async def test_a_sequence_may_show_every_answer_so_far() -> None:
    def write(input: str, answers: dict[str, str]) -> str:
        return f"{input}:{answers}"

    seen = await run(Sequence(first="write", second="write", see="all"), write=write)
    assert seen.output == "tide:{'first': 'tide:{}'}"


async def test_a_sequence_ends_with_its_first_failure() -> None:
    seen = await run(Sequence("up", "broken", "bang"))
    assert why(seen) == "no TIDE"
    assert seen.services == ["up", "broken"]


# --- parallel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_all_outputs_by_name_in_whatever_order_they_come(seed: int) -> None:
    assert (await run(Parallel("up", loud="bang"), seed=seed)).output == {"up": "TIDE", "loud": "tide!"}


async def test_one_failure_of_all() -> None:
    assert why(await run(Parallel("up", "broken"))) == "no tide"
    assert (await run(Parallel("up", "broken", failures="skip"))).output == {"up": "TIDE"}
    kept = (await run(Parallel("up", "broken", failures="keep"))).output
    assert kept["up"] == "TIDE"
    assert kept["broken"]["error"]["message"] == "no tide"


async def test_the_first_answer_is_enough() -> None:
    assert (await run(Parallel("broken", "up", "bang", want="any"))).output == "TIDE"
    assert why(await run(Parallel("broken", also="broken", want="any"))) == "no tide"
    assert (await run(Parallel("broken", "up", "bang", want=2))).output == {"up": "TIDE", "bang": "tide!"}
    assert why(await run(Parallel("broken", "up", want=2))) == "no tide"


async def test_a_quorum_is_more_than_half() -> None:
    assert (await run(Parallel("up", "bang", "up", want="quorum"))).output == "TIDE"
    assert why(await run(Parallel("up", "bang", want="quorum"))) == "no more than 1 of 2 nodes agree"
    assert (await run(Parallel("up", "broken", want="quorum", failures="skip"))).output == "TIDE"
    assert why(await run(Parallel("up", "broken", want="quorum"))) == "no more than 1 of 2 nodes agree"


async def test_the_best_by_score() -> None:
    assert (await run(Parallel("up", "bang", want="best", score=len))).output == "tide!"
    assert (await run(Parallel("up", "broken", want="best", score=len, failures="skip"))).output == "TIDE"
    assert why(await run(Parallel("up", "broken", want="best", score=len))) == "failed: broken"


async def test_what_still_runs_inside_of_another_is_taken_back() -> None:
    race = Parallel("up", slow=Sequence("bang", "bang"), want="any")
    seen = await run(Sequence(race, "bang"))
    assert seen.output == "TIDE!"
    assert seen.taken_back == ["parallel/slow/bang"]


@pytest.mark.parametrize("options", [{"want": 3}, {"want": 0}, {"want": "best"}, {"score": len}])
def test_what_makes_no_sense_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"want|score"):
        Parallel("up", "bang", **options)


# --- map ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [None, 1, 3])
async def test_each_item_in_order_and_no_more_than_allowed_at_once(at_once: int | None) -> None:
    def each(text: str) -> str:
        return text + "."

    items = [{"text": str(number)} for number in range(10)]
    seen = await run(Map("each", at_once=at_once), items, seed=1, each=each)
    assert seen.output == [f"{number}." for number in range(10)]


async def test_the_outputs_are_reduced_by_a_node_and_items_stand_where_one_says() -> None:
    def total(text: str) -> int:
        return len(text)

    seen = await run(Map("up", over="words", reduce="total"), {"words": ["a", "b"]}, total=total)
    assert seen.output == len('["A","B"]')
    assert (await run(Map("up", over="words"), {"words": []})).output == []
    assert why(await run(Map("up", over="words"), {"word": []})) == (
        "Map needs a list under 'words' of the input, not NoneType"
    )


async def test_failures_of_items() -> None:
    def picky(text: str) -> str:
        return broken(text) if text == "b" else text

    given = ["a", "b", "c"]
    assert why(await run(Map("picky"), given, picky=picky)) == "no b"
    assert (await run(Map("picky", failures="skip"), given, picky=picky)).output == ["a", "c"]
    kept = (await run(Map("picky", failures="keep"), given, picky=picky)).output
    assert (kept[0], kept[1]["error"]["message"], kept[2]) == ("a", "no b", "c")


async def test_orchestrators_for_each_item() -> None:
    seen = await run(Map(Sequence("up", "bang"), at_once=2), ["a", "b", "c"], seed=3)
    assert seen.output == ["A!", "B!", "C!"]


# --- router ---------------------------------------------------------------------------------------------------------


async def test_a_rule_chooses() -> None:
    policy = Router(lambda given: "loud" if given == "tide" else "quiet", {"loud": "up", "quiet": "bang"})
    assert (await run(policy)).output == "TIDE"
    assert (await run(policy, "sea")).output == "sea!"


@pytest.mark.parametrize("answer", ["loud", {"route": "loud", "because": "it is late"}])
async def test_a_service_chooses(answer: Any) -> None:
    def judge(input: str, routes: list[str]) -> Any:
        assert (input, routes) == ("tide", ["loud", "quiet"])
        return answer

    seen = await run(Router("judge", {"loud": "up", "quiet": "bang"}), judge=judge)
    assert seen.output == "TIDE"
    assert seen.events == [{"route": "loud"}]


async def test_a_route_that_does_not_exist() -> None:
    routes: dict[str, Any] = {"loud": "up"}
    assert why(await run(Router(lambda _: "west", routes))) == "'west' is none of the routes: loud"
    assert (await run(Router(lambda _: "west", routes, default="loud"))).output == "TIDE"
    with pytest.raises(ValueError, match="none of the routes"):
        Router(lambda _: "west", routes, default="west")


# --- handoff --------------------------------------------------------------------------------------------------------


def triage(input: Any, **_: Any) -> Any:
    return {"handoff": "billing", "input": f"refund for {input}"}


def billing(input: Any, **more: Any) -> Any:
    return f"done: {input} (from {more['from']})"


async def test_the_work_is_handed_on_until_somebody_answers() -> None:
    seen = await run(Handoff({"triage": "triage", "billing": "billing"}), triage=triage, billing=billing)
    assert seen.output == "done: refund for tide (from triage)"
    assert seen.events == [{"handoff": "billing", "from": "triage"}]


async def test_only_allowed_targets_and_no_ping_pong() -> None:
    agents = {"triage": "triage", "billing": "billing", "legal": "legal"}
    only = Handoff(agents, targets={"triage": ["legal"]})
    assert why(await run(only, triage=triage)) == "triage may not hand over to 'billing', only to: legal"

    def back(**_: Any) -> Any:
        return {"handoff": "triage"}

    assert why(await run(Handoff(agents), triage=triage, billing=back)) == "billing and triage hand the work to and fro"

    def onwards(**more: Any) -> Any:
        return {"handoff": {"triage": "billing", "billing": "legal", "legal": "triage"}[more["from"] or "legal"]}

    seen = await run(Handoff(agents, handoffs_max=5, ping_pong_max=9), triage=triage, billing=back)
    assert why(seen) == "the work was handed over more than 5 times"
    with pytest.raises(ValueError, match="no such agent: sales"):
        Handoff(agents, targets={"triage": ["sales"]})
