"""What control planes that share a store say to the instances that are connected to all of them, and hear from them.

An instance says in its `Hello` that it knows these; nobody else is sent any. Each step belongs to the connection that
brought it, or to the one whose control plane has adopted it since: only what comes over that one counts.
"""

from __future__ import annotations

import msgspec

from llama_deploy.messages.operation import Operation


class HeldStep(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A step that an instance is working on, or whose answer it keeps until that is acknowledged."""

    step_id: str
    attempt: int
    heartbeat: bytes | None = None
    """JSON of what the service's code said with its last sign of life, where that was not told yet."""


# --- instance -> control plane --------------------------------------------------------------------------------------


class Offer(Operation, frozen=True):
    """Steps that another connection has brought: whoever leads their tasks now adopts them. Answered by `Adopted`."""

    held: list[HeldStep]


class Queued(Operation, frozen=True):
    """A delivered attempt waits for its turn: the instance is busy with what other control planes have sent."""

    step_id: str
    attempt: int


class Begun(Operation, frozen=True):
    """A delivered attempt that had to wait begins now."""

    step_id: str
    attempt: int


# --- control plane -> instance --------------------------------------------------------------------------------------


class Planes(Operation, frozen=True):
    """The URLs of all control planes on the store: the instance is to be connected to each of them, and no other."""

    urls: list[str]


class Claimed(Operation, frozen=True):
    """This control plane leads further sessions since now: the instance offers what it holds of them from others."""

    shards: list[int] = []
    """Those of these shards; all that it holds from others where none is named."""
    of: int = 1
    """Into how many shards sessions are divided."""


class NotLed(Operation, frozen=True):
    """Others lead the tasks of these steps, and everything of these shards: the instance offers that to them.

    What it has said about them here is not recorded.
    """

    step_ids: list[str]
    shards: list[int] = []
    of: int = 1


class Adopted(Operation, frozen=True):
    """What became of an `Offer`. What is named in neither list is led by others, or by nobody at the moment."""

    step_ids: list[str]
    """These belong to this connection from now on; what is not acknowledged of them is said again here."""
    disowned: list[str]
    """These are not wanted any more."""
