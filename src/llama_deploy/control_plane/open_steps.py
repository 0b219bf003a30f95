"""A step that was sent and is not answered, as it stands in memory. It holds no policy; only the engine changes it."""

from __future__ import annotations

from zlib import crc32

from llama_deploy.control_plane.records import SentMessage
from llama_deploy.types import StepOptions

SOMEBODY = 1
"""What stands in a delivery for an instance that is not known."""


def holder_mark(instance_id: str) -> int:
    """What stands for an instance in a delivery: a number of 16 bits, neither 0 nor `SOMEBODY`.

    Two instances are taken for one another once in 65,534 times, and that counts only where both were given the same
    attempt of a step.
    """
    mark = crc32(instance_id.encode("utf-8", "surrogatepass")) % 65_534 - 32_768
    return mark if mark < 0 else mark + 2


class OpenStep:
    """A step that was sent and is not answered."""

    __slots__ = (
        "action",
        "asking",
        "attempt",
        "awaited",
        "beat",
        "beat_at",
        "begun_by",
        "body",
        "claimed_at",
        "claimed_by",
        "consumed",
        "due_at",
        "due_since",
        "failures",
        "found",
        "index",
        "inputs",
        "known",
        "losses",
        "memory",
        "memos",
        "options",
        "overdue_s",
        "parked",
        "prompt",
        "published",
        "questions",
        "queued",
        "resume",
        "resumed_at",
        "sent_again_at",
        "seq",
        "service",
        "snapshot",
        "started",
        "step_id",
        "tag",
        "topic",
        "trouble",
    )

    def __init__(
        self, *, step_id: str, service: str, action: str, tag: str | None, body: bytes, seq: int, index: int
    ) -> None:
        # topic: where it was last published in the queue, under the name of its service or of a release of that
        self.step_id, self.service, self.action, self.tag, self.topic = step_id, service, action, tag, service
        self.body = body
        """JSON of the message's data."""
        self.seq, self.index = seq, index
        self.options: StepOptions | None = None
        """What the decision said about this step alone."""
        self.attempt = 1
        self.due_at = 0.0
        """Not before this time, seconds since the epoch; 0 when it may go at once."""
        self.due_since = 0.0
        """Since when an instance may take this attempt."""
        self.published = self.found = False
        """Whether it was handed to the queue in this attempt, by this process; and whether others may have been given
        the attempt: it was found in the record, or who had it has let go of it."""
        self.claimed_by: str | None = None
        """The instance that holds it, as far as this process knows."""
        self.claimed_at = 0.0
        self.started = self.begun_by = 0
        """The attempt that is recorded as begun, and the mark of whoever is recorded to have begun it."""
        self.overdue_s = self.sent_again_at = 0.0
        """The pause before it is published once more, and when this process last did that."""
        self.failures = self.losses = 0
        """Failed attempts since the task last paused because of them, and attempts lost with their instances since."""
        self.parked = 0
        """The history entry in which it was parked, or 0."""
        self.asking = False
        """A person is being asked."""
        self.prompt: bytes | None = None
        self.questions: dict[int, bytes] = {}
        """What a running attempt has asked and nobody has answered: prompts, by the number of the input they wait for.
        """
        self.resume: str | None = None
        self.snapshot: bytes | None = None
        self.inputs: list[bytes] = []
        self.consumed = 0
        self.trouble: str | None = None
        """Why the attempt before this one failed, of a notification, whose failures no history has."""
        self.known: bytes | None = None
        """JSON of the result that answers it already, of a step that a task has from the one that it was made from."""

        self.awaited: dict[str, str] | None = None
        """The tasks that this attempt has called and waits for, by the call's key; empty ones have ended, and it waits
        for its place at its instance."""
        self.resumed_at = 0.0
        """When it last went on after waiting for a person, or for a task that it called; 0 in an attempt that did not.
        """
        self.queued = False
        """Whoever holds it has not begun it: it works on what other control planes have sent."""
        self.beat: bytes | None = None
        """JSON of what the step's code said with its last sign of life, in this attempt or an earlier one."""
        self.beat_at = 0.0
        self.memos: dict[str, bytes] | None = None
        """JSON of the values that the step's code had remembered, by key; `None` until there is one."""
        self.memory: bytes | None = None
        """JSON of what it remembered when it was parked; `None` where it is handed what its service remembers."""

    @property
    def recorded_holder(self) -> int:
        """The mark of whoever is recorded to have begun the present attempt; 0 where nobody is."""
        return self.begun_by if self.started == self.attempt else 0

    def ask(self, number: int, prompt: bytes) -> None:
        """A running attempt asks; the oldest open question is the one that is shown."""
        self.questions[number] = prompt
        self.asking = True
        self.prompt = next(iter(self.questions.values()))

    def take_input(self, value: bytes) -> None:
        """A person has answered."""
        self.inputs.append(value)
        for number in [number for number in self.questions if number <= len(self.inputs)]:
            del self.questions[number]
        self.asking = bool(self.questions)
        self.prompt = next(iter(self.questions.values()), None)

    def wait_for_person(self) -> None:
        """It is a question of the orchestrator: it waits from the moment it is sent, and the answer is the input."""
        self.parked = self.seq
        self.asking = True
        self.prompt = self.body
        self.resume = "answer"

    def remember(self, key: str, value: bytes) -> None:
        """A value for this attempt and every later one."""
        if self.memos is None:
            self.memos = {}
        self.memos[key] = value

    def stop_asking(self) -> None:
        """Nobody waits for an answer any more."""
        self.asking = False
        self.questions.clear()
        self.awaited = None
        self.resumed_at = 0.0

    def renew(self, message: SentMessage) -> None:
        """The orchestrator has the step tried again with another message."""
        self.body = bytes(message.data)
        if bytes(message.options):
            self.options = StepOptions.model_validate_json(bytes(message.options))

    @property
    def notification(self) -> bool:
        """Whether this only tells somebody of the end of the task: its answer changes nothing."""
        return self.action == "completed_task"
