"""What travels to and from a broker, and how one topic of it stands in this process."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec

from llama_deploy.message_queues.base import Envelope


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """An envelope on its way, with when it was published."""

    sent_at: float
    envelope: Envelope


class Fetched(NamedTuple):
    """A message that the broker has given to this process."""

    token: Any
    """What the driver acknowledges it by."""
    data: bytes


class Measured(NamedTuple):
    """What the broker says of a topic."""

    waiting: int
    oldest_at: float | None = None
    """When the message that waits longest was published, where the broker can tell."""


def sent_at(data: bytes) -> float | None:
    """When a message was published; `None` for one that is none of ours."""
    try:
        return decode(data).sent_at
    except msgspec.DecodeError:
        return None


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Sealed).decode


class Topic:
    """One service's side of the broker."""

    __slots__ = (
        "fetching",
        "giving_back",
        "held",
        "lock",
        "mark",
        "measured_at",
        "measuring",
        "moves",
        "name",
        "oldest_at",
        "passed_over",
        "returning",
        "sending",
        "standing",
        "unsent",
        "wanted",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.mark = ""
        """The mark of the broker's place; empty until it is prepared the first time."""
        self.lock = asyncio.Lock()
        self.standing = 0
        """What waits at the broker: its figure, and what was sent and fetched since; may be wrong for a moment."""
        self.unsent = 0
        self.oldest_at: float | None = None
        """What was published before this has been fetched by somebody."""
        self.measured_at = 0.0
        self.measuring: asyncio.Task[None] | None = None
        self.moves = self.passed_over = self.sending = 0
        self.held: dict[str, Any] = {}
        """Tokens of what is fetched and not yet given to a consumer, by step id."""
        self.wanted = asyncio.Event()
        self.fetching: asyncio.Task[None] | None = None
        self.giving_back: asyncio.TimerHandle | None = None
        self.returning: asyncio.Task[None] | None = None
