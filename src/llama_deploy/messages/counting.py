"""What control planes that share a store say to each other about services that are limited over all of them.

One of them counts for a service; the others tell it what waits and what runs at their own gates, and are told what may
go. The state of a gate is the truth: what was told of it before is replaced by what is told later, step by step, and
all of it is told anew on every connection.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0, le=10**9)]


class Seat(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A step that waits at a gate, or has a place there."""

    number: int
    """Of this telling; whoever admits the step names it, so that nothing is admitted by an answer to an older one."""
    name: str
    session_id: str
    key: str
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)]
    turn: Annotated[int, msgspec.Meta(ge=0, le=3)]
    """`IN_ORDER`, `FIRST`, `GOES_ON` or `RUNS`."""
    waits_s: Seconds = 0.0


IN_ORDER, FIRST, GOES_ON, RUNS = range(4)
"""Waits behind those that came before; ahead of them; to go on, having begun before; has a place."""


class _Op(msgspec.Struct, array_like=True, tag=True, frozen=True, gc=False):
    """Base of all operations: an array on the wire, its first element the name of the operation."""


# --- to whoever counts ----------------------------------------------------------------------------------------------


class Begin(_Op, frozen=True):
    """All that a gate knows follows, up to `Complete`; what was told of it before is forgotten."""

    service: str
    owner: str
    """The control plane that speaks."""
    begun_s: list[Seconds]
    """How long ago attempts have begun that its rate remembers, oldest first."""


class Seats(_Op, frozen=True):
    """These wait, or run, as they say."""

    service: str
    seats: list[Seat]


class Left(_Op, frozen=True):
    """These neither wait nor run any more."""

    service: str
    names: list[str]
    unbegun: list[str]
    """Those of them that had a place and have not begun: the rate counts them no more."""
    moved: list[str] = []
    """Those of them that another control plane leads by now: they count until that one has told of them."""


class Complete(_Op, frozen=True):
    """That was all since `Begin`."""

    service: str


# --- from whoever counts --------------------------------------------------------------------------------------------


class Admitted(_Op, frozen=True):
    """The steps that were told under these numbers have a place."""

    service: str
    numbers: list[int]


class Standing(_Op, frozen=True):
    """How the service stands, for whoever has steps that wait."""

    service: str
    running: int
    opens_in_s: float | None
    """When the rate lets the next one go; `None` where it is not the rate that everybody waits for."""
    closed: bool
    """Nothing goes until everybody has told what runs."""


class MakeWay(_Op, frozen=True):
    """Something that has begun waits to go on: give back the place of a step that nobody has taken yet."""

    service: str


class NotCounted(_Op, frozen=True):
    """Nothing is counted here for this service: ask again in a moment, or another one."""

    service: str


TellingOp = Begin | Seats | Left | Complete
CountingOp = Admitted | Standing | MakeWay | NotCounted

CONNECT_PATH = "/v1/connect/control-plane"
"""Where control planes connect to whoever counts."""
SEATS_AT_ONCE = 2_000
"""Seats of one operation."""

_telling = msgspec.msgpack.Decoder(list[TellingOp])
_counting = msgspec.msgpack.Decoder(list[CountingOp])


def decode_telling_frame(data: bytes) -> list[TellingOp]:
    """What whoever counts is told. Raises `msgspec.DecodeError` for anything that is not a frame."""
    return _telling.decode(data)


def decode_counting_frame(data: bytes) -> list[CountingOp]:
    """What whoever counts says. Raises `msgspec.DecodeError` for anything that is not a frame."""
    return _counting.decode(data)
