"""Frames that nobody should send: operations of every kind with values that may mean anything, and damaged bytes.

The strategies come from the operations' own types, so an operation that is added later is abused as well.
"""

from __future__ import annotations

import json
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from llama_deploy.messages.frames import PROTOCOL_VERSION, Hello, encode_frame

TASKS = ("t0", "t1", "t2")
SERVICE = "echo"

_WORDS = [*TASKS, *(f"{task}:{n}" for task in TASKS for n in (1, 2)), "nobody", "nobody:1", "", ":", SERVICE, "other"]
_WORDS += ["answer", "redeliver", "\0", "é" * 300, "\ud7ff", "one"]
_NUMBERS = [0, 1, 2, 3, -1, 10, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1]
_RESULTS: list[Any] = [
    {"task_id": "", "history": [], "result": "done"},
    {"task_id": "other", "history": [], "result": "done", "step_id": "t1:1", "status": "canceled"},
    {"result": "no", "status": "failed", "error": {"message": "no"}},
    {"result": "no", "status": "failed", "error": {"message": "no", "retryable": False, "retry_after_s": 1e300}},
    {"result": "no", "status": "failed", "error": {"message": "no", "retry_after_s": -1}},
    {"result": 5, "history": "none"},
    {"prompt": "?"},
    {"prompt": {"deep": [None]}},
    {"input": "text", "agent_id": SERVICE, "task_id": "t0"},
    {"input": "text", "agent_id": SERVICE, "session_id": "s", "idempotency_key": "k"},
    {"input": "text", "agent_id": "nobody", "wait_for_service": True},
    {"input": "text", "metadata": {"a": 1}, "options": {"delay_s": -5}},
    None,
    [],
    "text",
    1e308,
]
_JSON = [json.dumps(value).encode() for value in _RESULTS]
_NOT_JSON = [b"", b"{", b"\xff\xfe", b"NaN", b"1 2", b"[" * 3000, b'"\\ud800"', b"\0" * 100]

_SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    str: st.sampled_from(_WORDS) | st.text(max_size=8),
    bool: st.booleans(),
    int: st.sampled_from(_NUMBERS),
    float: st.floats() | st.integers(-5, 5).map(float),
    bytes: st.sampled_from(_JSON) | st.sampled_from(_NOT_JSON),
    type(None): st.none(),
}


def _value(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, meaningful or not."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(_value, parts))
    if origin in (list, tuple):
        return st.lists(_value(parts[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(_value(parts[0]), _value(parts[1]), max_size=3)
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return _struct(annotation)
    return st.none() | st.sampled_from(_WORDS)


def _struct(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.tuples(*(_value(hints[name]) for name in kind.__struct_fields__)).map(lambda values: kind(*values))


def operations(union: Any) -> st.SearchStrategy[Any]:
    """One operation of any kind."""
    return st.one_of(*(_struct(kind) for kind in get_args(union)))


def greeting(**definition: Any) -> Hello:
    """What an instance says first; good manners get further."""
    services = [{"service_name": SERVICE, "description": "", **definition}]
    return Hello(PROTOCOL_VERSION, "abuser", json.dumps(services).encode(), [], 1, "host")


@st.composite
def damaged(draw: st.DrawFn, frames: st.SearchStrategy[bytes]) -> bytes:
    """A frame with some bytes changed, cut off, repeated or put in."""
    data = bytearray(draw(frames))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["change", "cut", "repeat", "insert"]))
        if what == "change" and data:
            data[place] = draw(st.integers(0, 255))
        elif what == "cut":
            del data[place:]
        elif what == "repeat":
            data[place:place] = data[place : place + draw(st.integers(0, 40))]
        else:
            data[place:place] = draw(st.binary(max_size=10))
    return bytes(data)


def conversations(union: Any, *, greeted: bool) -> st.SearchStrategy[list[bytes]]:
    """Some frames of one connection, most of them well formed, after a greeting where there is one."""
    frames = st.lists(operations(union), min_size=1, max_size=6).map(encode_frame)
    said = st.lists(st.one_of(frames, frames, frames, damaged(frames), st.binary(max_size=50)), min_size=1, max_size=5)
    if not greeted:
        return said
    manners = st.sampled_from([greeting(), greeting(concurrency=1), greeting(retry={"max_retries": 2}), None])
    return st.tuples(manners, said).map(lambda both: ([encode_frame([both[0]])] if both[0] else []) + both[1])
