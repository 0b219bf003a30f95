"""What agents of llama-index remember, as JSON and back: whole, or not at all."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer, Memory, StaticMemoryBlock
from llama_index.core.storage.chat_store import sql
from tests.services.attempts import Attempt
from tests.support.waiting import eventually
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.errors import ServiceRaisedError
from llama_deploy.services import Parked, WorkflowService
from llama_deploy.services.agent_memory import Memories, memory_from
from llama_deploy.types import TaskResult


@pytest.fixture(autouse=True)
async def closed_databases(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The databases of memories are closed; llama-index leaves that to the end of the process."""
    made: list[Any] = []
    name = "create_async_engine"
    create = getattr(sql, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        made.append(create(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(sql, name, noted)
    yield
    for engine in made:
        await engine.dispose()


HELLO = [ChatMessage(role="user", content="hello"), ChatMessage(role="assistant", content="good day")]


class Talk(Workflow):
    """Keeps a memory in its context while a person thinks."""

    memory: BaseMemory

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        await self.memory.aset(list(HELLO))
        await ctx.store.set(ev.get("key", "memory"), self.memory)
        return InputRequiredEvent(prefix="?")  # type: ignore[call-arg]  # a field of the reader's own

    @step
    async def answer(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        memory = await ctx.store.get("memory", default=None) or await ctx.store.get("other")
        await memory.aput(ChatMessage(role="user", content=ev.response))
        said = [str(message.content) for message in await memory.aget_all()]
        return StopEvent(result=[type(memory).__name__, getattr(memory, "token_limit", 0), *said])


def talk(memory: Any) -> Talk:
    made = Talk()
    made.memory = memory
    return made


class Own(ChatMemoryBuffer):
    """A kind of memory that nobody knows but its own program."""


async def parked(memory: Any, key: str = "memory", **options: Any) -> bytes:
    """The context that is saved of a run with this memory."""
    found = await WorkflowService(talk(memory), **options).run(Attempt({"key": key}))
    assert isinstance(found, Parked)
    assert found.snapshot is not None
    return found.snapshot


@pytest.mark.parametrize("key", ["memory", "other"])
@pytest.mark.parametrize("make", [ChatMemoryBuffer, Memory], ids=lambda cls: cls.__name__)
async def test_a_memory_is_made_again_from_a_parked_run(make: Any, key: str) -> None:
    snapshot = await parked(make.from_defaults(token_limit=777), key)
    assert b"pickle" not in snapshot
    result = await WorkflowService(talk(None)).run(Attempt(inputs=["yes"], snapshot=snapshot))
    assert isinstance(result, TaskResult)
    assert result.value == [make.__name__, 777, "hello", "good day", "yes"]


async def test_what_a_memory_has_put_away_is_kept_as_well() -> None:
    memory = Memory.from_defaults(token_limit=60, token_flush_size=20, chat_history_token_ratio=0.5)
    long = [ChatMessage(role="user", content=f"sentence number {number} of a long talk") for number in range(8)]
    await memory.aput_messages(long)
    memories = Memories()
    await memories.look_at([memory])
    form = json.loads(json.dumps(memories.form_of(memory)))
    again = memory_from(form)
    statuses = {row["status"] for row in form["rows"]}
    assert statuses == {"active", "archived"}
    assert [m.content for m in await again.aget_all(status=None)] == [
        m.content for m in await memory.aget_all(status=None)
    ]
    assert [m.content for m in await again.aget()] == [m.content for m in await memory.aget()]


def not_whole(folder: Path) -> dict[str, Any]:
    return {
        "a database": Memory.from_defaults(async_database_uri=f"sqlite+aiosqlite:///{folder / 'talk.db'}"),
        "blocks": Memory.from_defaults(memory_blocks=[StaticMemoryBlock(name="facts", static_content="a fact")]),
        "a tokenizer": ChatMemoryBuffer.from_defaults(tokenizer_fn=list),
        "a kind of its own": Own.from_defaults(),
    }


@pytest.mark.parametrize("what", ["a database", "blocks", "a tokenizer", "a kind of its own"])
async def test_a_memory_that_cannot_be_whole_waits_in_the_process(what: str, tmp_path: Path) -> None:
    memory = not_whole(tmp_path)[what]
    attempt = Attempt({})
    running = asyncio.create_task(WorkflowService(talk(memory)).run(attempt))
    await eventually(lambda: attempt.asked)
    done, _ = await asyncio.wait([running], timeout=0.3)
    assert not done
    attempt.inputs.put_nowait("yes")
    result = await running
    assert isinstance(result, TaskResult)
    assert result.value[2:] == ["hello", "good day", "yes"]


@pytest.mark.parametrize("kind", ["Own", "os", None])
async def test_a_kind_that_is_not_known_is_not_made(kind: str | None) -> None:
    snapshot = await parked(ChatMemoryBuffer.from_defaults())
    wanted = json.dumps(json.dumps(kind))[1:-1].encode()
    changed = snapshot.replace(b'\\"kind\\": \\"ChatMemoryBuffer\\"', b'\\"kind\\": ' + wanted)
    assert changed != snapshot
    with pytest.raises(ServiceRaisedError, match="is not a memory"):
        await WorkflowService(talk(None)).run(Attempt(inputs=["yes"], snapshot=changed))


async def test_without_llama_index_there_are_no_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = await parked(ChatMemoryBuffer.from_defaults())
    monkeypatch.delitem(sys.modules, "llama_index.core.memory")
    with pytest.raises(ServiceRaisedError, match="'ChatMemoryBuffer' is not a memory"):
        await WorkflowService(talk(None)).run(Attempt(inputs=["yes"], snapshot=snapshot))


class Notes:
    """A class of somebody else's package with a form of its own."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    @classmethod
    def class_name(cls) -> str:
        return "Notes"

    def to_dict(self) -> dict[str, Any]:
        return {"lines": self.lines}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Notes:
        return cls(**data)


Notes.__module__ = "elsewhere.notes"


class Noting(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        await ctx.store.set("notes", Notes(["first"]))
        return InputRequiredEvent(prefix="?")  # type: ignore[call-arg]  # a field of the reader's own

    @step
    async def answer(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=[*(await ctx.store.get("notes")).lines, ev.response])


async def test_a_class_from_elsewhere_is_allowed_by_name() -> None:
    attempt = Attempt({})
    running = asyncio.create_task(WorkflowService(Noting()).run(attempt))
    await eventually(lambda: attempt.asked)
    done, _ = await asyncio.wait([running], timeout=0.3)
    assert not done  # it waits in memory
    running.cancel()
    found = await WorkflowService(Noting(), allowed_types=[Notes]).run(Attempt({}))
    assert isinstance(found, Parked)
    result = await WorkflowService(Noting(), allowed_types=[Notes]).run(
        Attempt(inputs=["yes"], snapshot=found.snapshot)
    )
    assert isinstance(result, TaskResult)
    assert result.value == ["first", "yes"]
