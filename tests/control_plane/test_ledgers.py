"""Ledgers: what a long talk costs, and that services, clients and people read what was said where it is kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import LinkedRunner, outcome, submit, world

from llama_deploy import Deployment, ServiceContext, service
from llama_deploy.control_plane.ledgers import PAGE_BYTES
from llama_deploy.errors import LedgerNotFoundError, TaskNotFoundError
from llama_deploy.orchestrators import (
    Action,
    Answer,
    BaseOrchestrator,
    Finish,
    GroupChat,
    Ledger,
    NoState,
    Orchestrator,
    Run,
    Sequence,
    Turn,
)

pytestmark = pytest.mark.anyio

FOUR = dict.fromkeys(("ann", "ben", "cleo", "dan"), "remark")


@service
async def remark(topic: str, turns: list[Any], first: int) -> str:
    """Two hundred characters, of which the first are the turn's number."""
    return f"{first + len(turns):<10}{topic:<190}"


async def cost_per_turn(plane: Any, turns: int) -> tuple[float, float]:
    """Bytes in the store, and bytes of messages to participants."""
    entry = await submit(plane, "talk", "the tides", options={"orchestrator": f"chat-{turns}"})
    await outcome(plane, entry)
    history = await plane.store.load_history(entry.row.task_id)
    chunks = await plane.store.load_chunks(entry.row.task_id)
    stored = sum(len(row.data) for row in history) + sum(len(chunk.data) for chunk in chunks)
    page = await plane.views.history(entry, after=0, limit=1000)
    sent = sum(len(str(message["data"])) for one in page.items for message in one.messages)
    return stored / turns, sent / turns


async def test_a_talk_of_200_turns_costs_per_turn_what_one_of_20_does() -> None:
    chats = {f"chat-{turns}": GroupChat(FOUR, turns_max=turns) for turns in (20, 200)}
    async with world(orchestrators=chats) as made:
        local = LinkedRunner([remark])
        await local.connect(made.plane)
        few, many = await cost_per_turn(made.plane, 20), await cost_per_turn(made.plane, 200)
        assert many[0] < few[0] * 1.1
        assert many[1] < few[1] * 1.2  # the first turns of a talk have less before them
        await local.stop()


def numbers(items: list[Any]) -> list[int]:
    return [int(item["said"].split()[0]) for item in items]


@service
async def reads(context: ServiceContext, topic: str, turns: list[Any], first: int) -> str:
    """Looks up what was said, and says how much that was."""
    everything = await context.ledger()
    assert everything[first:] == turns
    assert await context.ledger("transcript", first=first) == turns
    return f"{len(everything)} {topic}"


@service
def reads_in_a_thread(context: ServiceContext, topic: str, turns: list[Any], first: int) -> str:
    """The same from a thread."""
    del turns, first
    return f"{len(context.blocking.ledger())} {topic}"


async def test_a_participant_that_remembers_nothing_reads_what_was_said() -> None:
    chat = GroupChat({"ann": "reads", "ben": "reads_in_a_thread"}, turns_max=6)
    services = [reads, reads_in_a_thread]
    async with Deployment(services=services, orchestrator=chat, store=":memory:") as system:
        task_id = await system.client.submit("talk", input="tides")
        assert (await system.client.wait(task_id)).output == "5 tides"
        assert numbers([item async for item in system.client.ledger(task_id)]) == [0, 1, 2, 3, 4, 5]
        assert numbers([item async for item in system.client.ledger(task_id, first=4)]) == [4, 5]
        assert [item async for item in system.client.ledger(task_id, first=99)] == []
        with pytest.raises(LedgerNotFoundError, match="ledgers: transcript"):
            await anext(system.client.ledger(task_id, "minutes"))
        with pytest.raises(TaskNotFoundError):
            await anext(system.client.ledger("nobody"))


@service
async def nested(context: ServiceContext, topic: str, turns: list[Any], first: int) -> str:
    """Reads the talk that it is part of, and asks for one that nobody keeps."""
    del turns, first
    with pytest.raises(LedgerNotFoundError, match="ledgers: talk/transcript"):
        await context.ledger("minutes")
    return f"{len(await context.ledger())} {topic}"


class Keeps(Orchestrator[NoState]):
    """A list of large items, added to by every answer."""

    def start(self, turn: Turn[NoState]) -> Iterable[Action]:
        return [Run("large", tag="0")]

    def on_answer(self, turn: Turn[NoState], answer: Answer) -> Iterable[Action]:
        kept = turn.ledger("kept")
        kept.append(answer.output)
        if len(kept) == 5:
            return [Finish([item[:1] for item in kept[1:3]])]
        return [Run("large", tag=str(len(kept)))]


@service
def large() -> str:
    """Half of what a page holds."""
    return "x" * (PAGE_BYTES // 2)


async def test_a_ledger_is_read_by_pages_also_when_its_task_has_left_memory(tmp_path: Path) -> None:
    inner = GroupChat({"ann": "nested"}, turns_max=2)
    policies: dict[str, BaseOrchestrator] = {"keeps": Keeps(), "nested": Sequence(talk=inner)}
    async with Deployment(services=[large, nested], orchestrators=policies, store=tmp_path / "s.db") as system:
        assert await system.client.run("talk", input="x", options={"orchestrator": "nested"}) == "1 x"
        task_id = await system.client.submit("large", input="", options={"orchestrator": "keeps"})
        assert (await system.client.wait(task_id)).output == ["x", "x"]
        assert [len(item) async for item in system.client.ledger(task_id, "kept")] == [PAGE_BYTES // 2] * 5
    async with Deployment(services=[large], orchestrators=policies, store=tmp_path / "s.db") as system:
        assert len([item async for item in system.client.ledger(task_id, "kept", first=1)]) == 4


@pytest.mark.parametrize("name", ["", "a/b", "a:b"])
def test_a_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a ledger"):
        Ledger({}, "", name)
