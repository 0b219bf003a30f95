"""A batch of transitions as the arrays of the one statement that records it.

What the statement cannot tell apart within a batch (a step that is answered and moved, a shared key that is touched
twice) ends the batch: what follows is the next one, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_deploy.state_stores.base import BLOB_PART_BYTES, Transition
from llama_deploy.state_stores.shards import shard_of, shard_of_transition

_TASK = ("int", "int", "text", "text", "text", "text", "int", "bigint", "float8", "float8", "float8", "text")
KINDS: tuple[tuple[str, ...], ...] = (
    (*_TASK, "smallint", "text"),
    ("int", "text", "int", "float8", "text", "bytea"),
    ("int", "text", "text", "text", "int", "float8", "int", "int", "int", "smallint", "int"),
    ("int", "text"),
    ("int", "text", "int", "int", "float8", "int", "smallint"),
    ("int", "text", "int", "int", "text", "int", "int", "float8", "bytea"),
    ("int", "text", "bytea", "int", "bytea"),
    ("int", "text", "bytea", "int"),
    ("int", "text", "float8"),
    ("int", "text", "text", "text"),
    ("int", "text", "text", "text", "int", "float8", "text", "bytea", "text"),
    ("int", "text", "bigint", "float8"),
    ("int", "text", "int", "bytea"),
    ("int", "text", "text"),
)
"""The types of the columns, kind by kind, in the order of the parameters of `record_1`."""

_EMPTY: tuple[tuple[list[Any], ...], ...] = tuple(([],) * len(kind) for kind in KINDS)


COMMON_KINDS = 4
"""So many kinds, the first ones, are all that nearly every batch has rows of."""
COMMON_ARGUMENTS = 1 + sum(len(kind) for kind in KINDS[:COMMON_KINDS])
ALL_ARGUMENTS = 1 + sum(len(kind) for kind in KINDS)


def record_statement(schema: str, *, common: bool = False) -> str:
    """The statement that records a batch; the common one has no parameters for the kinds that are rare."""
    types = ["text", "bigint", "int", "int[]", "bigint[]", "boolean"]
    types += [f"{column}[]" for kind in (KINDS[:COMMON_KINDS] if common else KINDS) for column in kind]
    parameters = [f"${number}::{type_}" for number, type_ in enumerate(types, start=1)]
    if common:
        parameters += ["'{}'" for kind in KINDS[COMMON_KINDS:] for _ in kind]
    return f"SELECT refused, lost, highest FROM {schema}.record_1({', '.join(parameters)})"  # noqa: S608 - no user text


def first_that_fits_not(batch: Sequence[Transition]) -> int:
    """How many transitions from the first on can be one batch."""
    versions: dict[str, int] = {}
    steps: set[str] = set()
    keys: set[tuple[str, str]] = set()
    for number, item in enumerate(batch):
        row = item.task
        if row is not None:
            known = versions.get(row.task_id)
            if known is not None and known != item.expected_version != 0:
                return number
            versions[row.task_id] = row.version
        if item.answered or item.moved:
            touched = {*item.answered, *[move.step_id for move in item.moved]}
            if touched & steps:
                return number
            steps |= touched
        if item.shared or item.shared_reads:
            seen = {(write.session_id, write.key) for write in item.shared}
            seen |= {(read.session_id, read.key) for read in item.shared_reads}
            if seen & keys:
                return number
            keys.update((write.session_id, write.key) for write in item.shared)
    return len(batch)


def contradicts_itself(item: Transition) -> bool:
    """Whether a transition can never be recorded, whatever stands in the database."""
    moved = [move.step_id for move in item.moved]
    answered = set(item.answered)
    return (
        len(answered) < len(item.answered)
        or len(set(moved)) < len(moved)
        or not answered.isdisjoint(moved)
        or bool((item.blobs or item.blob_uses) and item.task is None)
        or _reads_what_it_writes_elsewise(item)
    )


def _reads_what_it_writes_elsewise(item: Transition) -> bool:
    written = {(write.session_id, write.key): write.expected_version for write in item.shared}
    return len(written) < len(item.shared) or any(
        written.get((read.session_id, read.key), read.version) != read.version for read in item.shared_reads
    )


def batch_arguments(
    batch: Sequence[Transition], shards: int, part_bytes: int = BLOB_PART_BYTES
) -> tuple[list[Any], set[int] | None]:
    """The arguments of a batch from `p_chained` on, and the shards that it touches; `None` for all that are held.

    A batch without a row of a rare kind has `COMMON_ARGUMENTS` of them, for the common statement.
    """
    tasks: list[tuple[Any, ...]] = []
    history: list[tuple[Any, ...]] = []
    sent: list[tuple[Any, ...]] = []
    answered: list[tuple[Any, ...]] = []
    rare: list[tuple[int, Transition]] = []
    touched: set[int] | None = set()
    for number, item in enumerate(batch):
        shard = shard_of_transition(item, shards)
        if shard is None:
            touched = None
        elif touched is not None:
            touched.add(shard)
        row = item.task
        if row is not None:
            tasks.append(
                (number, item.expected_version, row.task_id, row.session_id, row.service, row.state, row.version)
                + (row.steps, row.created_at, row.updated_at, row.ended_at, row.origin, row.paused, row.error)
            )
        entry = item.entry
        if entry is not None:
            history.append((number, entry.task_id, entry.seq, entry.at, entry.kind, entry.data))
        sent += [
            (number, d.step_id, d.task_id, d.service, d.attempt, d.visible_at, d.seq, d.index, d.parked, d.started)
            + (shard_of(d.task_id, shards) if shard is None else shard,)
            for d in item.sent
        ]
        answered += [(number, step_id) for step_id in item.answered]
        if _has_more(item):
            rare.append((number, item))
    chained = len(tasks) > 1 and len({row[2] for row in tasks}) < len(tasks)
    arguments: list[Any] = [chained]
    kinds = (tasks, history, sent, answered, *(_rare(rare, part_bytes) if rare else ()))
    for rows, empty in zip(kinds, _EMPTY, strict=False):
        arguments += zip(*rows, strict=True) if rows else empty
    return arguments, touched


def _has_more(item: Transition) -> bool:
    """Whether there is anything in it beside what nearly every transition has."""
    if item.moved or item.chunks or item.shared or item.shared_reads or item.session or item.idempotency:
        return True
    return bool(item.dead or item.blobs or item.blob_uses)


def _rare(items: Sequence[tuple[int, Transition]], part_bytes: int) -> tuple[list[tuple[Any, ...]], ...]:
    """The rows of those kinds that most transitions have none of, in the order of `KINDS`."""
    moved = [
        (n, m.step_id, m.expected_attempt, m.attempt, m.visible_at, m.parked, m.started)
        for n, item in items
        for m in item.moved
    ]
    chunks = [
        (n, c.task_id, c.first, c.count, c.step_id, c.attempt, c.attempt_first, c.at, c.data)
        for n, item in items
        for c in item.chunks
    ]
    shared = [(n, w.session_id, w.key.encode(), w.expected_version, w.value) for n, item in items for w in item.shared]
    reads = [(n, r.session_id, r.key.encode(), r.version) for n, item in items for r in item.shared_reads]
    sessions = [(n, item.session.session_id, item.session.created_at) for n, item in items if item.session]
    keys = [
        (n, item.idempotency[0], item.task.task_id, item.idempotency[1])
        for n, item in items
        if item.idempotency and item.task
    ]
    dead = [
        (n, d.step_id, d.task_id, d.service, d.attempt, d.at, d.code, d.message.encode("utf-8", "surrogatepass"))
        + (d.redriven,)
        for n, item in items
        for d in item.dead
    ]
    blobs = [
        (n, hash_, len(data), item.task.updated_at)
        for n, item in items
        if item.task
        for hash_, data in item.blobs.items()
    ]
    parts = [
        (n, hash_, position, data[first : first + part_bytes])
        for n, item in items
        for hash_, data in item.blobs.items()
        for position, first in enumerate(range(0, len(data), part_bytes))
    ]
    uses = [(n, hash_, item.task.task_id) for n, item in items if item.task for hash_ in item.blob_uses]
    return moved, chunks, shared, reads, sessions, keys, dead, blobs, parts, uses
