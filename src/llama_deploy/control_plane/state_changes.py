"""How a change of a task's own state is written, so that it costs what is new in it, and how it is read again.

Two things come back in values that a policy keeps: what stood there before (a list that has grown by one), and the
output of the answer that was folded (an answer that is kept). Neither is written a second time: of what has grown
only the end is recorded, and in the place of the output stands a mark. Both work on the bytes, so that what is read
is what was decided, byte by byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llama_deploy.control_plane.records import StateChange, decode_record, encoded_around_output, output_of
from llama_deploy.control_plane.session_state import Delta, PrivateState
from llama_deploy.state_stores.base import HistoryRow

GROWN_BYTES_MIN = 128
"""What is shorter is recorded whole when it grows."""
OUTPUT_BYTES_MIN = 48
"""An output that is shorter is recorded again where it is kept."""


def written(delta: Delta, private: PrivateState, result: bytes) -> StateChange:
    """What a history entry with this `result` says of a decision's changes to the state before it."""
    change = StateChange(own_present=delta.own_present)
    before = private.own or {}
    output = output_of(result) if delta.own and any(_is_long(value) for value in delta.own.values()) else b""
    for key, value in delta.own.items():
        if value is None:
            change.own_removed.append(key)
            continue
        end = _end(before.get(key), value)
        place = value.find(output) if len(output) >= OUTPUT_BYTES_MIN and end is None else -1
        if end is not None:
            change.own_grown[key] = msgspec.Raw(end)
        elif place >= 0:
            change.own_around_output[key] = (value[:place].decode(), value[place + len(output) :].decode())
        else:
            change.own[key] = msgspec.Raw(value)
    for key, value in delta.keys.items():
        if value is None:
            change.keys_removed.append(key)
        elif value == result:
            change.keys_as_result.append(key)
        else:
            change.keys[key] = msgspec.Raw(value)
    change.shared = list(delta.shared)
    return change


def read(change: StateChange, private: PrivateState, result: bytes) -> None:
    """Take the changes of a history entry with this `result` over. Raises `ValueError` for what cannot follow."""
    delta = Delta()
    delta.own_present = change.own_present
    delta.own = {key: bytes(value) for key, value in change.own.items()}
    if change.own_around_output:
        delta.own.update(encoded_around_output(change, result))
    delta.own.update(dict.fromkeys(change.own_removed))
    delta.keys = {key: bytes(value) for key, value in change.keys.items()}
    delta.keys.update(dict.fromkeys(change.keys_as_result, result))
    delta.keys.update(dict.fromkeys(change.keys_removed))
    private.apply(delta)
    for key, end in change.own_grown.items():
        private.grow(key, bytes(end))
    for service, memory in change.memory.items():
        private.keep(service, bytes(memory))


def own_state_of(task_id: str, history: Sequence[HistoryRow]) -> dict[str, bytes]:
    """What stands under `state[task_id]` at the end of a history, by key."""
    private = PrivateState(task_id)
    for row in history:
        record = decode_record(row.data)
        if record.change is not None:
            read(record.change, private, bytes(record.result))
    private.settle()
    return private.own or {}


def _is_long(value: bytes | None) -> bool:
    return value is not None and len(value) >= OUTPUT_BYTES_MIN


def _end(before: bytes | None, after: bytes) -> bytes | None:
    """What came to the end of a list or an object, as one of its own; `None` where it is another value.

    A value that begins with all of the one before but its closing bracket, and goes on with a comma, is that one with
    more items (RFC 8259, section 2: nothing else can follow a complete item there).
    """
    if before is None or len(before) < GROWN_BYTES_MIN or len(after) <= len(before) or before[:1] not in (b"[", b"{"):
        return None
    kept = len(before) - 1
    if after[kept : kept + 1] != b"," or not after.startswith(before[:kept]):
        return None
    return before[:1] + after[kept + 1 :]
