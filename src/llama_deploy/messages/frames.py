"""What travels on a connection between a control plane and its service instances and clients.

One WebSocket message is one *frame*: a msgpack array of operations. Whoever sends collects what has accumulated and
sends it as one frame, so a busy connection pays per batch and not per message. Payloads (`bytes` fields) are JSON
documents that are encoded once, where they arise, and only carried here. The same operations, unencoded, connect a
service that lives in the control plane's own process.

What is said stands by who says it: `instances`, `mesh` and `contents` (between instances and control planes),
`requests` (clients); what a control plane says to an instance, `Deliver` above all, stands here. Delivery of an
operation is not acknowledged by the connection: whoever needs to know keeps what it said until it hears of it.
Whoever speaks takes all but those of `mesh` and `contents` from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from llama_deploy.messages.contents import (
    ContentKept,
    ContentPart,
    ContentRefused,
    ContentTaken,
    ContentWanted,
    DropContent,
    GetContent,
    OfferContent,
    PutContent,
)
from llama_deploy.messages.instances import (
    Answer,
    AskInput,
    Call,
    Credits,
    EndCall,
    Events,
    Goodbye,
    Heartbeat,
    Hello,
    LeftBehind,
    Park,
    ReadLedger,
    Remember,
    Stopped,
)
from llama_deploy.messages.mesh import Adopted, Begun, Claimed, HeldStep, NotLed, Offer, Planes, Queued
from llama_deploy.messages.operation import Index, Operation
from llama_deploy.messages.requests import (
    Accepted,
    Ended,
    Follow,
    Forget,
    Items,
    Refused,
    StreamEnd,
    Submit,
    Subscribe,
    Wait,
)

__all__ = [
    "Accepted",
    "Answer",
    "AskInput",
    "Call",
    "Credits",
    "EndCall",
    "Ended",
    "Events",
    "Follow",
    "Forget",
    "Goodbye",
    "Heartbeat",
    "HeldStep",
    "Hello",
    "Items",
    "LeftBehind",
    "Park",
    "ReadLedger",
    "Refused",
    "Remember",
    "Stopped",
    "StreamEnd",
    "Submit",
    "Subscribe",
    "Wait",
]

PROTOCOL_VERSION = 1
"""Raised when an operation changes its meaning. A control plane refuses an instance or client of another version."""


# --- control plane -> instance --------------------------------------------------------------------------------------


class Welcome(Operation, frozen=True):
    """The answer to `Hello`: the instance is registered and ready."""

    heartbeat_s: float
    lease_s: float
    disowned: list[str]
    """Steps named in `Hello` that are not the instance's any more; it stops them and forgets their answers."""
    cancel_grace_s: float = 4.0
    """How long code that is to stop may take before it is left behind, in seconds."""
    adopted: list[str] | None = None
    """Of the steps named in `Hello`, those whose tasks this control plane leads; `None` where it leads all there are.
    """
    planes: list[str] | None = None
    """The URLs of all control planes on the store, this one's included; `None` where there is one."""
    plane: str = ""
    """The URL of this one, where others share its store."""
    redact: list[str] | None = None
    """Patterns of keys whose values are left out of what people look at, the instance's log included."""


class Deliver(Operation, frozen=True):
    """One attempt of one step, for this instance."""

    step_id: str
    attempt: int
    service: str
    action: str
    task_id: str
    session_id: str
    message: bytes
    """JSON of the `QueueMessage`'s `data`."""
    run_timeout_s: float
    """Seconds; 0 for the service's own, where it was not known yet when the step was published."""
    inputs: list[bytes] = []
    """JSON of the inputs that people gave to this step so far, oldest first."""
    snapshot: bytes | None = None
    """What the step parked with, if it did."""
    events_from: Index = 0
    """Index of the next stream event within this attempt: not 0 where the attempt has streamed before it parked."""
    heartbeat_timeout_s: float = 0
    """The attempt is given up when the service's code has shown no sign of life for so many seconds; 0 for never."""
    remembered: dict[str, bytes] | None = None
    """JSON of the values that earlier attempts of the step have had remembered, by key."""
    last_heartbeat: bytes | None = None
    """JSON of what an earlier attempt said with its last sign of life."""
    memory: bytes | None = None
    """JSON of what the service remembers, where it keeps a memory and there is something in it."""
    memory_version: int = 0


class Acknowledged(Operation, frozen=True):
    """Answers to these steps are recorded, or were not wanted any more: the instance forgets them."""

    step_ids: list[str]


class EventsCommitted(Operation, frozen=True):
    """The first `count` stream events of this attempt are recorded."""

    step_id: str
    attempt: int
    count: int


class Disowned(Operation, frozen=True):
    """Answer to `Heartbeat`: the instance does not own these steps any more and stops them."""

    step_ids: list[str]


class CancelStep(Operation, frozen=True):
    """Stop this step: its task was canceled or has ended. No answer is expected."""

    step_id: str
    reason: str


class DeliverInput(Operation, frozen=True):
    """An input for a running step. `number` counts the step's inputs from 1."""

    step_id: str
    number: int
    value: bytes


class ParkRefused(Operation, frozen=True):
    """The step is not parked: inputs from `number` on have arrived meanwhile and follow as `DeliverInput`."""

    step_id: str
    number: int


class Remembered(Operation, frozen=True):
    """What is recorded under a key of a step: the value of whoever was first. Or why nothing can be."""

    step_id: str
    attempt: int
    key: str
    value: bytes
    problem: bytes = b""
    """JSON of problem+json where it was refused."""


class LedgerRead(Operation, frozen=True):
    """A page of a ledger. Or why there is none."""

    step_id: str
    attempt: int
    name: str
    first: int
    page: bytes
    """JSON of a `LedgerPage`."""
    problem: bytes = b""
    """JSON of problem+json where it was refused."""


class Returned(Operation, frozen=True):
    """A call of a step has ended: with the outcome of the task that was called, or with why there is no such task."""

    step_id: str
    attempt: int
    key: str
    task_id: str = ""
    state: str = ""
    result: bytes = b""
    """JSON of the final `TaskResult`."""
    problem: bytes = b""
    """JSON of problem+json where the call was refused."""


class Drain(Operation, frozen=True):
    """Take nothing new, finish what you hold, then leave."""

    timeout_s: float | None = None
    """Hand back what is not finished by then; None: as long as the instance takes when it is ended."""


# --- frames ---------------------------------------------------------------------------------------------------------


ContentOp = OfferContent | PutContent | GetContent | DropContent
ContentReply = ContentWanted | ContentTaken | ContentKept | ContentPart | ContentRefused
InstanceOp = (
    Hello
    | Credits
    | Answer
    | Events
    | Park
    | AskInput
    | Remember
    | ReadLedger
    | Call
    | EndCall
    | Heartbeat
    | Stopped
    | LeftBehind
    | Goodbye
    | Offer
    | Queued
    | Begun
    | ContentOp
)
ControlOp = (
    Welcome
    | Deliver
    | Acknowledged
    | EventsCommitted
    | Disowned
    | CancelStep
    | DeliverInput
    | ParkRefused
    | Remembered
    | LedgerRead
    | Returned
    | Drain
    | Refused
    | Planes
    | Claimed
    | NotLed
    | Adopted
    | ContentReply
)
ClientOp = Submit | Wait | Subscribe | Follow | Forget
ReplyOp = Accepted | Ended | Items | StreamEnd | Refused

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "instance": msgspec.msgpack.Decoder(list[InstanceOp]),
    "control": msgspec.msgpack.Decoder(list[ControlOp]),
    "client": msgspec.msgpack.Decoder(list[ClientOp]),
    "reply": msgspec.msgpack.Decoder(list[ReplyOp]),
}

FRAME_BYTES_TARGET = 1024 * 1024
"""Operations leave as one frame up to about this size, then a further frame begins."""
OPERATION_BYTES_MAX = 32 * 1024 * 1024
"""The largest payload of one operation. The limits of a control plane are lower by default, and are told with a
refusal; a frame beyond what the other side reads at all would only end the connection, again and again."""
HEARTBEAT_BYTES_MAX = 16 * 1024
"""The most that a service's code may say with one sign of life."""
FRAME_BYTES_MAX = 64 * 1024 * 1024
"""The largest frame that is read."""

encode_frame = _encoder.encode
"""`encode_frame(ops) -> bytes`."""

_SMALL_BYTES = 64
"""What an operation without a payload counts for."""

_PAYLOAD_BYTES: dict[type, Callable[[Any], int]] = {
    msgspec.Raw: lambda op: memoryview(op).nbytes,
    Answer: lambda op: len(op.result) + len(op.memory or b"") + sum(map(len, op.events)),
    Events: lambda op: sum(map(len, op.events)),
    Park: lambda op: len(op.prompt) + len(op.snapshot or b"") + len(op.memory or b"") + sum(map(len, op.events)),
    AskInput: lambda op: len(op.prompt),
    Remember: lambda op: len(op.value),
    Remembered: lambda op: len(op.value),
    LedgerRead: lambda op: len(op.page),
    Call: lambda op: len(op.definition),
    Returned: lambda op: len(op.result),
    DeliverInput: lambda op: len(op.value),
    PutContent: lambda op: len(op.data),
    ContentPart: lambda op: len(op.data),
    Submit: lambda op: len(op.definition),
    Ended: lambda op: len(op.result),
    Items: lambda op: sum(map(len, op.items)),
}


def frames_of(operations: Sequence[Any]) -> Iterator[bytes]:
    """The operations in order, as frames of about `FRAME_BYTES_TARGET` bytes at most; a large operation goes alone."""
    begin = size = 0
    for position, operation in enumerate(operations):
        measure = _PAYLOAD_BYTES.get(type(operation))
        operation_bytes = _SMALL_BYTES + (measure(operation) if measure is not None else 0)
        if size and size + operation_bytes > FRAME_BYTES_TARGET:
            yield encode_frame(operations[begin:position])
            begin, size = position, 0
        size += operation_bytes
    if size:
        yield encode_frame(operations[begin:] if begin else operations)


def pieces(items: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Items in order, in pieces that fit into one operation each, with the position of a piece's first item."""
    begin = size = 0
    for position, item in enumerate(items):
        if position > begin and size + len(item) > FRAME_BYTES_TARGET:
            yield begin, items[begin:position]
            begin, size = position, 0
        size += len(item)
    if items:
        yield begin, items[begin:] if begin else items


def decode_instance_frame(data: bytes) -> list[InstanceOp]:
    """What an instance sent. Raises `msgspec.DecodeError` for anything that is not a frame."""
    return _decoders["instance"].decode(data)  # type: ignore[no-any-return]


def decode_control_frame(data: bytes) -> list[ControlOp]:
    """What a control plane sent to an instance. Raises `msgspec.DecodeError` for anything that is not a frame."""
    return _decoders["control"].decode(data)  # type: ignore[no-any-return]


def decode_client_frame(data: bytes) -> list[ClientOp]:
    """What a client sent. Raises `msgspec.DecodeError` for anything that is not a frame."""
    return _decoders["client"].decode(data)  # type: ignore[no-any-return]


def decode_reply_frame(data: bytes) -> list[ReplyOp]:
    """What a control plane sent to a client. Raises `msgspec.DecodeError` for anything that is not a frame."""
    return _decoders["reply"].decode(data)  # type: ignore[no-any-return]


_deliver_decoder = msgspec.msgpack.Decoder(Deliver)


def encode_op(op: Operation) -> bytes:
    """One operation, to be put into a frame later as `msgspec.Raw`, or carried by a queue."""
    return _encoder.encode(op)


def decode_deliver(data: bytes) -> Deliver:
    """A delivery as a queue carried it."""
    return _deliver_decoder.decode(data)
