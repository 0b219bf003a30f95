"""What an instance of services says to a control plane, over a connection of its own.

`Answer` and `Events` are kept by the instance until the control plane has committed them and says so; what is asked is
asked again after a reconnect. What a control plane says to an instance is in `frames`.
"""

from __future__ import annotations

from llama_deploy.messages.mesh import HeldStep
from llama_deploy.messages.operation import Index, Operation


class Hello(Operation, frozen=True):
    """The first operation on an instance's connection, also after every reconnect."""

    protocol: int
    instance_id: str
    services: bytes
    """JSON list of `ServiceDefinition`: what this instance serves."""
    held: list[HeldStep]
    """Everything that it holds, whoever has sent it."""
    pid: int
    host: str
    mesh: bool = False
    """It connects to every control plane that it hears of, and knows the operations of `mesh`."""
    stays: bool = False
    """It lives in the process of a control plane: it does not leave when it is asked to."""
    release: str = ""
    """The release of the deployment that its code is of; empty where it says none."""


class Credits(Operation, frozen=True):
    """How many steps of a service the instance will hold at once, from now on; 0 while it drains."""

    service: str
    capacity: int


class Answer(Operation, frozen=True):
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
    memory: bytes | None = None
    """JSON of what the service remembers from now on; None where that is what it was handed."""
    memory_version: int = 0
    """Of the memory that the attempt was handed."""
    runs_on: bool = False
    """The attempt has failed, and its code has not ended yet: `Stopped` follows when it has."""


class Events(Operation, frozen=True):
    """Stream events of a running step, in order. Repeated until `EventsCommitted` covers them."""

    step_id: str
    attempt: int
    first: Index
    """Index of the first event within this attempt, from 0; repeated events are recognised by it."""
    events: list[bytes]


class Park(Operation, frozen=True):
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
    memory: bytes | None = None
    """JSON of what the step is handed as its memory when it goes on; None where that is what it was handed before."""


class AskInput(Operation, frozen=True):
    """The step asks a person for input and keeps running while it waits. Repeated after a reconnect."""

    step_id: str
    attempt: int
    prompt: bytes
    number: int = 0
    """Which of the step's inputs will be the answer, counted from 1; by it a repeated question is recognised."""


class Remember(Operation, frozen=True):
    """The step wants a value kept for all of its attempts. Answered by `Remembered`; repeated after a reconnect."""

    step_id: str
    attempt: int
    key: str
    value: bytes
    """JSON of the value."""


class ReadLedger(Operation, frozen=True):
    """The step reads a list of an orchestrator above it. Answered by `LedgerRead`; repeated after a reconnect."""

    step_id: str
    attempt: int
    name: str
    first: Index
    """The position that it wants to read from."""


class Call(Operation, frozen=True):
    """The step calls another service and waits for the task that this makes, or has made. Repeated after a reconnect.

    Answered by `Returned` when that task has ended.
    """

    step_id: str
    attempt: int
    key: str
    """Names the call within the step: the same key is the same call in every attempt."""
    definition: bytes
    """JSON of a `TaskDefinition`; its id and origin are the control plane's to give."""


class EndCall(Operation, frozen=True):
    """The step goes on without waiting for a call; the task that it called goes on, too."""

    step_id: str
    attempt: int
    key: str


class Heartbeat(Operation, frozen=True):
    """The instance lives, and holds these steps; those and no others have their lease extended."""

    held: list[HeldStep]


class Stopped(Operation, frozen=True):
    """The code of an attempt that was taken away, or that `runs_on`, has ended or is left behind: its place is free."""

    step_id: str
    attempt: int


class LeftBehind(Operation, frozen=True):
    """So many pieces of a service's code run on in the instance that nobody waits for, and cannot be stopped."""

    service: str
    count: int


class Goodbye(Operation, frozen=True):
    """The instance leaves on purpose; what it still holds is handed back and becomes the next attempt at once."""
