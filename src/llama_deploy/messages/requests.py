"""What clients ask for on their connection to a control plane, and what they hear.

Each request has a number of the client's own, which the replies to it bear. Nothing is remembered beyond a connection:
`Submit` is repeated by the client under the same task id, everything else is asked for again.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from llama_deploy.messages.operation import Operation

RequestNumber = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
"""A client's own number of a request, which the replies to it bear; 0 stands for the connection itself."""


# --- client -> control plane ----------------------------------------------------------------------------------------


class Submit(Operation, frozen=True):
    """Submit a task; repeated under the same task id it finds the task that the first one made."""

    request: RequestNumber
    definition: bytes
    """JSON of a `TaskDefinition`."""
    wait: bool
    """Also send `Ended` when the task ends."""


class Wait(Operation, frozen=True):
    """Send `Ended` when the task ends, at once if it has."""

    request: RequestNumber
    task_id: str


class Subscribe(Operation, frozen=True):
    """Send the task's stream from event index `first` on, as it is recorded, and `StreamEnd` after the last event."""

    request: RequestNumber
    task_id: str
    first: int


class Follow(Operation, frozen=True):
    """Send the task's history after entry `after`, as it is recorded, and `StreamEnd` after the last entry."""

    request: RequestNumber
    task_id: str
    after: int


class Forget(Operation, frozen=True):
    """Nothing more is wanted for an earlier request."""

    request: RequestNumber


# --- control plane -> client ----------------------------------------------------------------------------------------


class Accepted(Operation, frozen=True):
    """The task is recorded: it will reach exactly one outcome."""

    request: int
    task_id: str


class Ended(Operation, frozen=True):
    """The task has ended with this outcome."""

    request: int
    task_id: str
    state: str
    result: bytes
    """JSON of the final `TaskResult`."""


class Items(Operation, frozen=True):
    """Recorded stream events (or history entries), dense: their numbers are `first`, `first + 1`, …"""

    request: int
    first: int
    items: list[bytes]


class StreamEnd(Operation, frozen=True):
    """The task has ended and everything before was sent."""

    request: int


class Refused(Operation, frozen=True):
    """The request cannot be served; `problem` is the JSON of problem+json. Request 0 is the connection itself."""

    request: int
    problem: bytes
