"""What a kind of task is, and what every kind needs: asking until there is an answer, waiting, telling.

Every kind may be done again from the beginning by another process, and repeats what an outage interrupts.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from llama_deploy.client import Client
from llama_deploy.errors import (
    CannotReachError,
    ConnectionLostError,
    ForwardingError,
    NoLeaderError,
    ShuttingDownError,
    StoreUnavailableError,
)
from llama_deploy.types import TaskResult
from llama_deploy.types.artifacts import Artifact

Value = TypeVar("Value")

OUTAGES = (
    CannotReachError,
    ConnectionLostError,
    ForwardingError,
    NoLeaderError,
    ShuttingDownError,
    StoreUnavailableError,
)
ASK_AGAIN_S = 0.05


class Plan(msgspec.Struct, frozen=True):
    """What task number `number` of a run is."""

    number: int
    kind: str
    task_id: str
    chance: int
    """A number of its own, for whatever the kind varies."""
    webhook: str = ""
    """Where its end may be told; the client that does it knows."""


class Told(msgspec.Struct):
    """What a client was told about its task."""

    number: int
    task_id: str
    state: str
    output: Any
    at: float = 0.0
    events: list[tuple[int, Any]] | None = None
    """Numbers and data of the stream, as it was followed live."""
    others: list[Told] = []
    """What it was told about further tasks that came of it, in the order in which they were made."""


async def insist(call: Callable[[], Awaitable[Value]]) -> Value:
    """Ask until there is an answer."""
    while True:
        try:
            return await call()
        except OUTAGES:
            await asyncio.sleep(ASK_AGAIN_S)


class Kind(ABC):
    """A kind of task."""

    name: str
    weight: int
    """How often it is chosen, compared with the others."""
    stays = True
    """Whether there is anything of it when its client is done."""

    @abstractmethod
    async def do(self, client: Client, plan: Plan) -> Told:
        """Have the task done and say what came of it."""

    @abstractmethod
    def expected(self, plan: Plan) -> tuple[str, Any]:
        """State and output that the task ends with. The output of a failed task is its error's message."""

    def others_are_right(self, plan: Plan, outcomes: list[tuple[str, Any]]) -> bool:
        """Whether the further tasks that came of it, in the order in which they were made, are as they should be."""
        return not outcomes

    def children_are_right(self, plan: Plan, states: list[str]) -> bool:
        """Whether the tasks that the task's steps have called are as they should be."""
        return not states


async def submitted(client: Client, plan: Plan, service: str, input: Any, **options: Any) -> str:
    """Submit until it is acknowledged; the task's id."""
    return await insist(
        lambda: client.submit(service, input=input, task_id=plan.task_id, wait_for_service=True, **options)
    )


async def ended(client: Client, plan: Plan, task_id: str) -> Told:
    """Wait for the outcome."""
    return as_told(plan, await insist(lambda: client.wait(task_id)))


def as_told(plan: Plan, result: TaskResult) -> Told:
    """The outcome as a client sees it."""
    output = result.output if result.status == "completed" else result.error.message if result.error else result.result
    if isinstance(output, Artifact):
        output = output.model_dump(mode="json")
    return Told(plan.number, result.task_id, result.status, output)
