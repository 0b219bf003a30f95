"""What orchestrators of the catalogue cost when they are wide or long: a map over thousands, a chat of 200 turns."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from benchmarks.scenarios.base import Figures, Sizes
from benchmarks.systems.base import System
from benchmarks.systems.ours import RunningOurs

FEW_TURNS, MANY_TURNS = 20, 200


def wide_map(system: System, sizes: Sizes, folder: Path) -> Figures:
    """`Map` over as many items as a fan-out has steps, and over ten times as many."""
    with system.running("patterns", folder) as running:
        load = {"steps": sizes.steps, "repeats": sizes.repeats, "processes": running.processes()}
        return running.client("wide_map", load)


def group_chat(system: System, sizes: Sizes, folder: Path) -> Figures:
    """`GroupChat` of four with few turns and with many: time, CPU, and bytes in the store per turn."""
    with system.running("patterns", folder) as running:
        assert isinstance(running, RunningOurs), "asked of our own system alone"
        load = {"repeats": sizes.repeats, "processes": running.processes()}
        told = running.client("group_chat", {**load, "options": {"few": FEW_TURNS, "many": MANY_TURNS}})
        few = _stored_bytes(running.store, "chat-few") / FEW_TURNS
        many = _stored_bytes(running.store, "chat-many") / MANY_TURNS
        return {**told, "bytes_per_turn": many, "bytes_growth": many / few}


def _stored_bytes(store: Path, task_id: str) -> int:
    """What the store has of one task: its history, and its stream."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        found = [
            connection.execute(f"SELECT coalesce(sum(length(data)), 0) FROM {table} WHERE task_id = ?", (task_id,))
            for table in ("history", "stream_chunks")
        ]
        return sum(int(rows.fetchone()[0]) for rows in found)
    finally:
        connection.close()
