"""Where a task stood at an entry of its history, and the same point as the beginning of another task.

Pure: history in, values out. A past is rebuilt as the present is, from the first entries of the history alone; ids of
the old task in state and messages become those of the new one. A state that tasks share is not part of it: it stands
as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from llama_deploy.control_plane.policies import Absent
from llama_deploy.control_plane.records import NOTHING, Carried, Record, SentMessage, StateChange, decode_record
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry, mark_of, rebuild
from llama_deploy.errors import LimitExceededError, NoProgressError, NotRepeatableError, OrchestratorError
from llama_deploy.orchestrators import get_result_key, get_stream_key
from llama_deploy.state_stores.base import DeliveryRow, HistoryRow, TaskRow
from llama_deploy.types import ActionTypes

_NOTIFICATION = ActionTypes.COMPLETED_TASK.value
_OWN_ENDS = frozenset({OrchestratorError.code, NoProgressError.code, LimitExceededError.code})
"""Codes of ends that the control plane made of a decision, whatever the steps had answered."""
_FAILURES = frozenset({"retrying", "lost", "paused"})
"""Entries that tell of a failed attempt."""


class Fork(msgspec.Struct, frozen=True):
    """What a task begins with that goes on from where another one stood, in its own ids."""

    change: StateChange
    """All of its private state."""
    messages: list[SentMessage]
    """The steps that are open."""
    steps: int
    """How many steps were ever sent; the next one has the number after it."""
    orchestrator: str
    """Who decided about the old task, which is who understands its state."""


class Past:
    """The recorded life of one task, to be looked at up to any of its entries."""

    def __init__(self, row: TaskRow, history: Sequence[HistoryRow]) -> None:
        self.row = row
        self.history = history
        self.records = [decode_record(entry.data) for entry in history]

    @property
    def ended(self) -> bool:
        """Whether the last entry ended the task."""
        return _outcome(self.records[-1]) != b""

    def at(self, seq: int) -> TaskEntry:
        """The task as it was after entry `seq`. Raises `NotRepeatableError` where nothing was open then."""
        last = len(self.records) - self.ended
        if not 1 <= seq <= last:
            raise NotRepeatableError(
                f"task {self.row.task_id} cannot go on from entry {seq}",
                why="that entry ended it" if seq == last + 1 else f"its history has {len(self.records)} entries",
                fix=f"choose an entry from 1 to {last}; llamactl tasks watch {self.row.task_id} -o jsonl   shows them",
            )
        entry = rebuild(self.row, self.history[:seq], self._open_at(seq), None, Absent)
        if not entry.open:
            raise NotRepeatableError(
                f"nothing of task {self.row.task_id} is open after entry {seq}", fix="choose another entry"
            )
        return entry

    def _open_at(self, seq: int) -> list[DeliveryRow]:
        """The steps that were open after entry `seq`, as if they had just been sent."""
        found: dict[str, DeliveryRow] = {}
        for entry, record in zip(self.history[:seq], self.records, strict=False):
            if entry.kind == "answered":
                found.pop(record.step_id or "", None)
            for step_id in record.taken_back:
                found.pop(step_id, None)
            for index, message in enumerate(record.messages):
                if message.step_id not in found and message.action != _NOTIFICATION:
                    row = DeliveryRow(message.step_id, self.row.task_id, message.service, 1, 0.0, entry.seq, index)
                    found[message.step_id] = row
        return list(found.values())

    def sent(self, seq: int) -> int:
        """The number of the last step that was sent up to entry `seq`."""
        numbers = [int(m.step_id.rpartition(":")[2]) for record in self.records[:seq] for m in record.messages]
        return max(numbers, default=0)

    def is_notification(self, step_id: str) -> bool:
        """Whether a step only tells of the end of the task."""
        return any(m.step_id == step_id and m.action == _NOTIFICATION for r in self.records for m in r.messages)

    def sent_in(self, step_id: str, *, notifications: bool = False) -> int:
        """The entry that sent a step. Raises `NotRepeatableError` where there is none."""
        for seq, record in enumerate(self.records, start=1):
            if any(m.step_id == step_id and (notifications or m.action != _NOTIFICATION) for m in record.messages):
                return seq
        known = [m.step_id for record in self.records for m in record.messages if m.action != _NOTIFICATION]
        raise NotRepeatableError(
            f"task {self.row.task_id} has no step {step_id!r}",
            fix="steps: " + ", ".join(known[:20]) + (", …" if len(known) > 20 else ""),  # noqa: PLR2004 - enough to see
        )

    def answers_after(self, seq: int) -> dict[str, bytes]:
        """By step, the results that completed steps after entry `seq`."""
        found: dict[str, bytes] = {}
        for entry, record in zip(self.history[seq:], self.records[seq:], strict=True):
            if entry.kind == "answered" and record.step_id is not None:
                encoded = bytes(record.result)
                if encoded and msgspec.json.decode(encoded).get("status", "completed") == "completed":
                    found[record.step_id] = encoded
        return found

    def remembered(self, step_id: str) -> dict[str, bytes]:
        """What the code of a step had remembered in all of its attempts: what was done once is not done again."""
        found: dict[str, bytes] = {}
        for entry, record in zip(self.history, self.records, strict=True):
            if entry.kind == "remembered" and record.step_id == step_id:  # what it has called has a key as well
                found[str(record.key)] = bytes(record.value)
        return found

    def memory_with(self, step: OpenStep) -> bytes:
        """JSON of what the service of a step remembers of the task since its answer; empty where nothing changed."""
        changes = (record.change for record in self.records if record.step_id == step.step_id)
        found = [change.memory[step.service] for change in changes if change and step.service in change.memory]
        return bytes(found[-1]) if found else b""

    def before_failure(self) -> int:
        """The entry just before the first failed attempt of what the task failed by, or before its end.

        What failed is the step whose failure is the outcome, else every step that had failed for good. Where no step
        did, or where the control plane itself made the end of a decision, it is the entry before the last.
        """
        return self.uncounted(self._before_end())

    def uncounted(self, seq: int) -> int:
        """The newest entry up to `seq` after which no open step has a failure that the orchestrator has counted."""
        while True:
            open_then = {row.step_id for row in self._open_at(seq)}
            counted = (
                entry.seq
                for entry, record in zip(self.history[:seq], self.records, strict=False)
                if entry.kind == "retrying" and record.change is not None and record.step_id in open_then
            )
            first = next(counted, None)
            if first is None:
                return seq
            seq = first - 1

    def _before_end(self) -> int:
        last = len(self.records) - 1
        end = self.records[last]
        outcome = msgspec.json.decode(_outcome(end))
        error = outcome.get("error") or {}
        failed = self._failed_steps()
        if self.history[last].kind != "answered" or not failed:
            return last
        if end.outcome_is_result and end.step_id in failed:
            return failed[end.step_id][0] - 1
        if error.get("code") in _OWN_ENDS:
            return last
        same = [first for first, known in failed.values() if error and _same(known, error)]
        return min(same or [first for first, _ in failed.values()]) - 1

    def failed_step(self, step_id: str) -> int:
        """The entry just before a step's first failed attempt. Raises `NotRepeatableError` where it never failed."""
        first = self._first_failure(step_id)
        if first is None:
            raise NotRepeatableError(f"step {step_id} of task {self.row.task_id} never failed")
        return first - 1

    def _failed_steps(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Steps whose last answer is a failure: the entry of their first failed attempt, and the error."""
        found: dict[str, tuple[int, dict[str, Any]]] = {}
        for entry, record in zip(self.history, self.records, strict=True):
            if entry.kind == "answered" and record.step_id is not None and bytes(record.result):
                result = msgspec.json.decode(bytes(record.result))
                if result.get("status", "completed") != "completed":
                    first = self._first_failure(record.step_id) or entry.seq
                    found[record.step_id] = (first, result.get("error") or {})
        return found

    def _first_failure(self, step_id: str) -> int | None:
        for entry, record in zip(self.history, self.records, strict=True):
            if record.step_id != step_id:
                continue
            if entry.kind in _FAILURES:
                return entry.seq
            if entry.kind == "answered" and msgspec.json.decode(bytes(record.result)).get("status") == "failed":
                return entry.seq
        return None


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in ("code", "type", "message"))


def _outcome(record: Record) -> bytes:
    return bytes(record.result if record.outcome_is_result else record.outcome)


def fork_at(
    past: Past,
    seq: int,
    task_id: str,
    *,
    keep_answers: bool,
    anew: str | None = None,
    edit: Callable[[OpenStep], bytes] = lambda step: step.body,
) -> Fork:
    """The task after entry `seq` as the beginning of task `task_id`.

    With `keep_answers`, what steps that were open then have answered since is kept, and they do not run again; what
    the code of the others has remembered since is kept as well. The step `anew` runs
    whatever it has answered, begins from nothing, and is sent the data that `edit` gives.
    """
    entry = past.at(seq)
    if anew is not None and anew not in entry.open:
        raise NotRepeatableError(
            f"step {anew!r} was not open after entry {seq}", fix=f"open then: {', '.join(entry.open)}"
        )
    # A step that was due when it failed is due at once; nobody waits for the beginning of a task a second time.
    since = past.history[min(seq, len(past.history) - 1) if keep_answers else seq - 1].at
    now = max(since, entry.begins_at)
    answers = past.answers_after(seq) if keep_answers else {}
    same = Renaming(past.row.task_id, task_id)
    messages: list[SentMessage] = []
    for step in entry.open.values():
        again = step.step_id == anew
        known = None if again else answers.get(step.step_id, step.known)
        message = SentMessage(
            step_id=same.text(step.step_id),
            service=step.service,
            action=step.action,
            data=msgspec.Raw(same.encoded(edit(step) if again else step.body)),
            tag=step.tag,
            delay_s=max(0.0, step.due_at - now) if step.due_at and known is None else 0.0,
        )
        if step.options is not None:
            message.options = msgspec.Raw(step.options.model_dump_json(exclude_defaults=True).encode())
        memos = (step.memos or {}) | (past.remembered(step.step_id) if keep_answers else {})
        memory = past.memory_with(step) if known is not None else step.memory
        if not again and (step.inputs or step.snapshot is not None or memos or known is not None):
            message.carried = Carried(
                inputs=[msgspec.Raw(value) for value in step.inputs],
                snapshot=step.snapshot,
                memory=msgspec.Raw(same.encoded(memory)) if memory else NOTHING,
                memos={key: msgspec.Raw(value) for key, value in memos.items()},
                answer=msgspec.Raw(same.encoded(known)) if known is not None else NOTHING,
            )
        messages.append(message)
    private = entry.private
    change = StateChange(own_present=private.own is not None)
    change.own = {same.text(key): msgspec.Raw(same.encoded(value)) for key, value in (private.own or {}).items()}
    change.keys = {same.text(key): msgspec.Raw(same.encoded(value)) for key, value in private.keys.items()}
    change.memory = {name: msgspec.Raw(same.encoded(memory)) for name, (memory, _) in private.memory.items()}
    return Fork(change, messages, past.sent(seq), mark_of(past.records[:seq]))


class Renaming:
    """The ids of one task as those of another, by structure: whole texts and whole keys, never parts of a text."""

    def __init__(self, old: str, new: str) -> None:
        self._words = {name(old): name(new) for name in (str, get_result_key, get_stream_key)}
        self._steps = (f"{old}:", f"{new}:")
        self._mark = msgspec.json.encode(old)[1:-1]

    def text(self, text: str) -> str:
        """A text that is the id, a key of the task, or the id of a step becomes the new one; any other stays."""
        known = self._words.get(text)
        if known is not None:
            return known
        old, new = self._steps
        number = text.removeprefix(old)
        return new + number if text.startswith(old) and number.isascii() and number.isdigit() else text

    def value(self, value: Any) -> Any:
        """A JSON value with every id in it renamed."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.value(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner) for inner in value]
        return value

    def encoded(self, encoded: bytes) -> bytes:
        """JSON with every id in it renamed; the same bytes where there is none."""
        if self._mark not in encoded:
            return encoded
        return msgspec.json.encode(self.value(msgspec.json.decode(encoded)))
