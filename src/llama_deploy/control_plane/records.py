"""What one history entry says, as it is stored: the JSON of a `Record`.

A record holds what cannot be derived: the definition, answers, decisions and changes of state. Values that are the
same bytes as the entry's `result` are stored as a mark, not a second time. Reading is tolerant: a field that a later
version adds is ignored, and one that an earlier version did not know has its default.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llama_deploy.types import HistoryEntry
from llama_deploy.types.redaction import NO_REDACTION, REDACTED, Redaction
from llama_deploy.types.webhooks import redacted

Json = msgspec.Raw
"""An encoded JSON value."""

_INPUT_FIELDS = ("input", "metadata", "state")
"""What a client fills in a task's definition."""
NOTHING = msgspec.Raw(b"")
"""Stands for the absence of an encoded value."""


class Carried(msgspec.Struct, omit_defaults=True):
    """What a step of a task that was made from another one has had there already."""

    inputs: list[Json] = []
    """What people answered it."""
    snapshot: bytes | None = None
    memos: dict[str, Json] = {}
    """What its code had remembered, by key."""
    memory: Json = NOTHING
    """What its service remembers in it of the task, before or with its answer."""
    answer: Json = NOTHING
    """JSON of the `TaskResult` that answered it: it is folded in as it is, and no service runs."""


class SentMessage(msgspec.Struct, omit_defaults=True, gc=False):
    """A message that a decision sent, under the step id that it was given."""

    step_id: str
    service: str
    action: str
    data: Json
    tag: str | None = None
    delay_s: float = 0.0
    options: Json = NOTHING
    """JSON of the message's `StepOptions`."""
    carried: Carried | None = None


class StateChange(msgspec.Struct, omit_defaults=True):
    """Changed keys of state, as their new values in JSON."""

    own: dict[str, Json] = {}
    """Keys inside `state[task_id]`."""
    own_grown: dict[str, Json] = {}
    """Keys like those of `own` whose value is the list or object before with these items or fields at its end."""
    own_around_output: dict[str, tuple[str, str]] = {}
    """Keys like those of `own` whose value holds the output of the entry's result: what stands before it and after."""
    own_removed: list[str] = []
    own_present: bool = False
    """Whether `state[task_id]` is a dictionary (that `own` is about) after this entry."""
    keys_as_result: list[str] = []
    """Keys like those of `keys` whose new value equals the entry's result."""
    keys: dict[str, Json] = {}
    """Other keys that belong to the task: `result_<id>`, `stream_<id>`; for a task without a session, every key."""
    keys_removed: list[str] = []
    shared: list[str] = []
    """Names of the session's shared keys that were changed; their values stand in the session."""
    memory: dict[str, Json] = {}
    """What services remember of the task from now on, by their name."""


class Record(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The stored part of a history entry, besides its number, time and kind."""

    state: str
    """The task's state after this entry."""
    definition: Json = NOTHING
    orchestrator: str = ""
    """Of the first entry, and of one that moves the task: who decides from here on, as `name@version`; of the first one
    empty for the default in its first version, `@1` in a later one."""
    step_id: str | None = None
    service: str | None = None
    attempt: int = 0
    result: Json = NOTHING
    """JSON of the `TaskResult` that answered the step, or that failed it."""
    messages: list[SentMessage] = []
    taken_back: list[str] = []
    """Ids of open steps that the decision took back."""
    outcome: Json = NOTHING
    """JSON of the final `TaskResult`."""
    outcome_is_result: bool = False
    change: StateChange | None = None
    started_at: float | None = None
    finished_at: float | None = None
    due_at: float | None = None
    """When the next attempt of the step may be delivered."""
    by: str | None = None
    reason: str | None = None
    input: Json = NOTHING
    number: int = 0
    """Counts the inputs of the step from 1."""
    prompt: Json = NOTHING
    snapshot: bytes | None = None
    memory: Json = NOTHING
    """What a parked step is handed as its memory when it goes on."""
    resume: str | None = None
    consumed: int = 0
    on_purpose: bool = False
    """A lost attempt was handed back by its instance."""
    key: str | None = None
    """What a remembered value stands under."""
    value: Json = NOTHING
    child: str | None = None
    """The task that the step has called."""
    called: str | None = None
    """The service of that task; None where its orchestrator chooses."""
    release: str = ""
    """Of the first entry, and of one that moves the task: the release whose instances get its steps from here on."""
    heartbeat: Json = NOTHING
    """What the step's code said with its last sign of life, before the attempt failed or was lost."""


encode_record = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(Record).decode
decode_json = msgspec.json.Decoder().decode


def to_entry(seq: int, at: float, kind: str, data: bytes, redact: Redaction = NO_REDACTION) -> HistoryEntry:
    """The entry as the API shows it, without what is to be left out."""
    record = decode_record(data)
    result = redact.result(_value(record.result))
    outcome = result if record.outcome_is_result else redact.result(_value(record.outcome))
    changes: dict[str, Any] | None = None
    if record.change is not None:
        mine = {key: _value(raw) for key, raw in record.change.keys.items()}
        mine.update(dict.fromkeys(record.change.keys_as_result, result))
        own = {key: _value(raw) for key, raw in record.change.own.items()}
        own.update(around_output(record.change, bytes(record.result)))
        grown = {key: _value(raw) for key, raw in record.change.own_grown.items()}
        changes = {
            "keys": redact.value(mine),
            "own": redact.value(own),
            **({"appended": redact.value(grown)} if grown else {}),
            "removed": [*record.change.keys_removed, *record.change.own_removed],
            "shared": record.change.shared,
        }
        if record.change.memory:
            changes["memory"] = redact.value({name: _value(raw) for name, raw in record.change.memory.items()})
    definition = redact.fields(_shown(record.definition), *_INPUT_FIELDS)
    options = definition.get("options") if isinstance(definition, dict) else None
    return HistoryEntry.model_validate(
        {
            "seq": seq,
            "at": at,
            "kind": kind,
            "state": record.state,
            "definition": definition,
            "origin": options.get("origin") if isinstance(options, dict) else None,
            "step_id": record.step_id,
            "service": record.service,
            "attempt": record.attempt or None,
            "result": result if isinstance(result, dict) else None,
            "error": result.get("error") if isinstance(result, dict) else None,
            "messages": [
                {
                    "step_id": message.step_id,
                    "service": message.service,
                    "action": message.action,
                    "tag": message.tag,
                    "delay_s": message.delay_s,
                    "options": _value(message.options),
                    "data": redact.value(_shown(message.data)),
                }
                for message in record.messages
            ],
            "taken_back": record.taken_back,
            "outcome": outcome,
            "state_changes": changes,
            "started_at": record.started_at,
            "finished_at": record.finished_at,
            "due_at": record.due_at,
            "by": record.by,
            "reason": record.reason,
            "input": redact.value(_value(record.input)),
            "prompt": redact.value(_value(record.prompt)),
            "key": record.key,
            "value": REDACTED if redact.hides(record.key or "") else redact.value(_value(record.value)),
            "child": record.child,
            "called": record.called,
            "release": record.release or None,
            "heartbeat": _value(record.heartbeat),
        }
    )


def redacted_record(data: bytes, redact: Redaction) -> bytes:
    """A stored record with what people do not get to see left out; the same bytes where there are no patterns."""
    if not redact:
        return data
    entry: dict[str, Any] = decode_json(data)
    entry.pop("snapshot", None)  # nobody knows what is inside of it
    if "definition" in entry:
        entry["definition"] = redact.fields(_shown(Json(msgspec.json.encode(entry["definition"]))), *_INPUT_FIELDS)
    for name in ("result", "outcome"):
        if name in entry:
            entry[name] = redact.result(entry[name])
    for message in entry.get("messages", ()):
        message["data"] = redact.value(message["data"])
        carried = message.get("carried", {})
        carried.pop("snapshot", None)
        for name in carried.keys() & {"inputs", "memos", "memory"}:
            carried[name] = redact.value(carried[name])
        if "answer" in carried:
            carried["answer"] = redact.result(carried["answer"])
    change = entry.get("change", {})
    _write_out(change, data, redact)
    for name in change.keys() & {"own", "own_grown", "keys", "memory"}:
        change[name] = redact.value(change[name])
    for name in entry.keys() & {"input", "prompt", "value", "memory"}:
        entry[name] = redact.value(entry[name])
    if "value" in entry and redact.hides(entry.get("key") or ""):
        entry["value"] = REDACTED
    if "reason" in entry:
        entry["reason"] = redact.text(entry["reason"])
    return msgspec.json.encode(entry)


def _write_out(change: dict[str, Any], data: bytes, redact: Redaction) -> None:
    """Put values into a change whole where only that can be looked at: around the output; grown, and to be left out."""
    for key in [key for key in change.get("own_grown", {}) if redact.hides(key)]:
        change.setdefault("own", {})[key] = change["own_grown"].pop(key)
    if change.pop("own_around_output", None):
        stored = decode_record(data)
        assert stored.change is not None
        change.setdefault("own", {}).update(around_output(stored.change, bytes(stored.result)))


def _shown(raw: Json) -> Any:
    """A value as it is shown: the query of a webhook's URL, which may be a secret, is left out of definitions."""
    value = _value(raw)
    if b'"webhook"' in bytes(raw) and isinstance(value, dict):
        for definition in (value, value.get("task")):
            options = definition.get("options") if isinstance(definition, dict) else None
            webhook = options.get("webhook") if isinstance(options, dict) else None
            if isinstance(webhook, dict):
                webhook["url"] = redacted(str(webhook.get("url")))
    return value


class _Output(msgspec.Struct):
    """The parts of a `TaskResult` that say what its output is."""

    kind: str = ""
    result: Json = NOTHING
    value: Json = NOTHING


_decode_output = msgspec.json.Decoder(_Output).decode


def output_of(result: bytes) -> bytes:
    """The output in the JSON of a `TaskResult`, as it stands there; empty where there is none."""
    if not result:
        return b""
    found = _decode_output(result)
    return bytes(found.value if found.kind == "json" else found.result)


def encoded_around_output(change: StateChange, result: bytes) -> dict[str, bytes]:
    """JSON of the values that hold the output of the entry's result."""
    output = output_of(result)
    return {key: begin.encode() + output + end.encode() for key, (begin, end) in change.own_around_output.items()}


def around_output(change: StateChange, result: bytes) -> dict[str, Any]:
    """The values that hold the output of the entry's result."""
    if not change.own_around_output:
        return {}
    return {key: decode_json(value) for key, value in encoded_around_output(change, result).items()}


def outcome_of(data: bytes) -> bytes | None:
    """JSON of the final `TaskResult` that an entry recorded, or `None` where it did not end the task."""
    record = decode_record(data)
    raw = record.result if record.outcome_is_result else record.outcome
    return bytes(raw) or None


def _value(raw: Json) -> Any:
    encoded = bytes(raw)
    return decode_json(encoded) if encoded else None
