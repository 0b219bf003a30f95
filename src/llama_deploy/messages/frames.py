"""What travels on a connection between a control plane and its service instances and clients.

One WebSocket message is one *frame*: a msgpack array of operations. Whoever sends collects what has accumulated and
sends it as one frame, so a busy connection pays per batch and not per message. Payloads (`bytes` fields) are JSON
documents that are encoded once, where they arise, and only carried here. The same operations, unencoded, connect a
service that lives in the control plane's own process.

Delivery of an operation is not acknowledged by the connection: `Answer` and `Events` are kept by the instance until
the control plane has committed them and says so; `Submit` is repeated by the client under the same task id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

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

PROTOCOL_VERSION = 1
"""Raised when an operation changes its meaning. A control plane refuses an instance or client of another version."""


Index = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A position that whoever hears of it will count on from; a frame with one that makes no sense is none."""


RequestNumber = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
"""A client's own number of a request, which the replies to it bear; 0 stands for the connection itself."""


class _Op(msgspec.Struct, array_like=True, tag=True, frozen=True, gc=False):
    """Base of all operations: an array on the wire, its first element the name of the operation."""


class HeldStep(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A step that an instance is working on, or whose answer it keeps until that is acknowledged."""

    step_id: str
    attempt: int
    heartbeat: bytes | None = None
    """JSON of what the service's code said with its last sign of life, where that was not told yet."""


# --- instance -> control plane --------------------------------------------------------------------------------------


class Hello(_Op, frozen=True):
    """The first operation on an instance's connection, also after every reconnect."""

    protocol: int
    instance_id: str
    services: bytes
    """JSON list of `ServiceDefinition`: what this instance serves."""
    held: list[HeldStep]
    pid: int
    host: str


class Credits(_Op, frozen=True):
    """How many steps of a service the instance will hold at once, from now on; 0 while it drains."""

    service: str
    capacity: int


class Answer(_Op, frozen=True):
    """A step is answered: it succeeded or failed. Repeated until `Acknowledged` names the step."""

    step_id: str
    attempt: int
    result: bytes
    """JSON of a `TaskResult`; its `task_id` and `step_id` are filled in by the control plane."""
    started_at: float
    finished_at: float
    events_from: Index = 0
    """Index, within this attempt, of the first of `events`."""
    events: list[bytes] = []
    """Stream events of this attempt that are not acknowledged yet; they commit with the answer and before it."""
    heartbeat: bytes | None = None
    """JSON of what the service's code said with its last sign of life, where the attempt failed."""


class Events(_Op, frozen=True):
    """Stream events of a running step, in order. Repeated until `EventsCommitted` covers them."""

    step_id: str
    attempt: int
    first: Index
    """Index of the first event within this attempt, from 0; repeated events are recognised by it."""
    events: list[bytes]


class Park(_Op, frozen=True):
    """The step waits for a person: the instance lets go of it, and no credit or lease is used meanwhile.

    Refused (`ParkRefused`) when an input newer than `consumed` is recorded: the step then goes on with that input.
    """

    step_id: str
    attempt: int
    prompt: bytes
    """JSON shown to the person: at least `{"prompt": text}`, with `schema` where one is known."""
    resume: str
    """`answer`: the input is the step's answer. `redeliver`: the step runs again with `snapshot` and the inputs."""
    snapshot: bytes | None
    consumed: int
    """Number of inputs of this step that the instance has consumed so far."""
    events_from: Index = 0
    events: list[bytes] = []


class AskInput(_Op, frozen=True):
    """The step asks a person for input and keeps running while it waits. Repeated after a reconnect."""

    step_id: str
    attempt: int
    prompt: bytes
    number: int = 0
    """Which of the step's inputs will be the answer, counted from 1; by it a repeated question is recognised."""


class Remember(_Op, frozen=True):
    """The step wants a value kept for all of its attempts. Answered by `Remembered`; repeated after a reconnect."""

    step_id: str
    attempt: int
    key: str
    value: bytes
    """JSON of the value."""


class Call(_Op, frozen=True):
    """The step calls another service and waits for the task that this makes, or has made. Repeated after a reconnect.

    Answered by `Returned` when that task has ended.
    """

    step_id: str
    attempt: int
    key: str
    """Names the call within the step: the same key is the same call in every attempt."""
    definition: bytes
    """JSON of a `TaskDefinition`; its id and origin are the control plane's to give."""


class EndCall(_Op, frozen=True):
    """The step goes on without waiting for a call; the task that it called goes on, too."""

    step_id: str
    attempt: int
    key: str


class Heartbeat(_Op, frozen=True):
    """The instance lives, and holds these steps; those and no others have their lease extended."""

    held: list[HeldStep]


class Stopped(_Op, frozen=True):
    """The code of an attempt that was taken away has ended, or is left behind: its place is free."""

    step_id: str
    attempt: int


class LeftBehind(_Op, frozen=True):
    """So many pieces of a service's code run on in the instance that nobody waits for, and cannot be stopped."""

    service: str
    count: int


class Goodbye(_Op, frozen=True):
    """The instance leaves on purpose; what it still holds is handed back and becomes the next attempt at once."""


# --- control plane -> instance --------------------------------------------------------------------------------------


class Welcome(_Op, frozen=True):
    """The answer to `Hello`: the instance is registered and ready."""

    heartbeat_s: float
    lease_s: float
    disowned: list[str]
    """Steps named in `Hello` that are not the instance's any more; it stops them and forgets their answers."""
    cancel_grace_s: float = 4.0
    """How long code that is to stop may take before it is left behind, in seconds."""


class Deliver(_Op, frozen=True):
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


class Acknowledged(_Op, frozen=True):
    """Answers to these steps are recorded, or were not wanted any more: the instance forgets them."""

    step_ids: list[str]


class EventsCommitted(_Op, frozen=True):
    """The first `count` stream events of this attempt are recorded."""

    step_id: str
    attempt: int
    count: int


class Disowned(_Op, frozen=True):
    """Answer to `Heartbeat`: the instance does not own these steps any more and stops them."""

    step_ids: list[str]


class CancelStep(_Op, frozen=True):
    """Stop this step: its task was canceled or has ended. No answer is expected."""

    step_id: str
    reason: str


class DeliverInput(_Op, frozen=True):
    """An input for a running step. `number` counts the step's inputs from 1."""

    step_id: str
    number: int
    value: bytes


class ParkRefused(_Op, frozen=True):
    """The step is not parked: inputs from `number` on have arrived meanwhile and follow as `DeliverInput`."""

    step_id: str
    number: int


class Remembered(_Op, frozen=True):
    """What is recorded under a key of a step: the value of whoever was first. Or why nothing can be."""

    step_id: str
    attempt: int
    key: str
    value: bytes
    problem: bytes = b""
    """JSON of problem+json where it was refused."""


class Returned(_Op, frozen=True):
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


class Drain(_Op, frozen=True):
    """Take nothing new, finish what you hold, then leave."""

    timeout_s: float | None = None
    """Hand back what is not finished by then; None: as long as the instance takes when it is ended."""


# --- client -> control plane ----------------------------------------------------------------------------------------


class Submit(_Op, frozen=True):
    """Submit a task; repeated under the same task id it finds the task that the first one made."""

    request: RequestNumber
    definition: bytes
    """JSON of a `TaskDefinition`."""
    wait: bool
    """Also send `Ended` when the task ends."""


class Wait(_Op, frozen=True):
    """Send `Ended` when the task ends, at once if it has."""

    request: RequestNumber
    task_id: str


class Subscribe(_Op, frozen=True):
    """Send the task's stream from event index `first` on, as it is recorded, and `StreamEnd` after the last event."""

    request: RequestNumber
    task_id: str
    first: int


class Follow(_Op, frozen=True):
    """Send the task's history after entry `after`, as it is recorded, and `StreamEnd` after the last entry."""

    request: RequestNumber
    task_id: str
    after: int


class Forget(_Op, frozen=True):
    """Nothing more is wanted for an earlier request."""

    request: RequestNumber


# --- control plane -> client ----------------------------------------------------------------------------------------


class Accepted(_Op, frozen=True):
    """The task is recorded: it will reach exactly one outcome."""

    request: int
    task_id: str


class Ended(_Op, frozen=True):
    """The task has ended with this outcome."""

    request: int
    task_id: str
    state: str
    result: bytes
    """JSON of the final `TaskResult`."""


class Items(_Op, frozen=True):
    """Recorded stream events (or history entries), dense: their numbers are `first`, `first + 1`, …"""

    request: int
    first: int
    items: list[bytes]


class StreamEnd(_Op, frozen=True):
    """The task has ended and everything before was sent."""

    request: int


class Refused(_Op, frozen=True):
    """The request cannot be served; `problem` is the JSON of problem+json. Request 0 is the connection itself."""

    request: int
    problem: bytes


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
    | Call
    | EndCall
    | Heartbeat
    | Stopped
    | LeftBehind
    | Goodbye
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
    | Returned
    | Drain
    | Refused
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
    Answer: lambda op: len(op.result) + sum(map(len, op.events)),
    Events: lambda op: sum(map(len, op.events)),
    Park: lambda op: len(op.prompt) + len(op.snapshot or b"") + sum(map(len, op.events)),
    AskInput: lambda op: len(op.prompt),
    Remember: lambda op: len(op.value),
    Remembered: lambda op: len(op.value),
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


def encode_op(op: _Op) -> bytes:
    """One operation, to be put into a frame later as `msgspec.Raw`, or carried by a queue."""
    return _encoder.encode(op)


def decode_deliver(data: bytes) -> Deliver:
    """A delivery as a queue carried it."""
    return _deliver_decoder.decode(data)
