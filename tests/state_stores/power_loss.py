"""The disks that a loss of power may leave, out of a record of what was written (`disk_log`).

What was written before a file's last sync is there. Of what was written since, any part may be: each sector of 512
bytes on its own, in any order, so that writes are torn and overtake each other. A name that was made or removed may be
found in either state until a sync settles it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.state_stores.disk_log import Create, Delete, Event, Mark, Sync, Truncate, Write

SECTOR = 512


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset + len(data):
        content.extend(b"\0" * (offset + len(data) - len(content)))
    content[offset : offset + len(data)] = data


def _apply(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Write):
        _write(content, change.offset, change.data)
    else:
        del content[change.size :]


@dataclass
class _File:
    """One file: what is on the disk for certain, and what may be."""

    synced: bytearray = field(default_factory=bytearray)
    since: list[Write | Truncate] = field(default_factory=list)
    exists: bool = True
    other: bytes | None = None
    """What may be found under the name in the place of this: the file before it. Empty bytes stand for none."""
    unsettled: bool = False
    """Whether the name may still be found as `other` says."""

    def sync(self) -> None:
        for change in self.since:
            _apply(self.synced, change)
        self.since.clear()

    def whole(self) -> bytes:
        content = bytearray(self.synced)
        for change in self.since:
            _apply(content, change)
        return bytes(content)


class Disk:
    """A folder as it is while events happen."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def happen(self, event: Event) -> None:
        """One more event."""
        if isinstance(event, Mark):
            return
        file = self._files.setdefault(event.file, _File())
        if isinstance(event, Sync):
            file.sync()
            if file.unsettled and event.file.endswith(("-wal", "-journal")):
                # SQLite syncs the folder with the first sync of a new log: what happened to names is settled.
                for known in self._files.values():
                    known.unsettled = False
            file.unsettled = False
        elif isinstance(event, Create):
            before = file.other if not file.exists and file.unsettled else None
            self._files[event.file] = _File(other=before, unsettled=True)
        elif isinstance(event, Delete):
            left = None if event.synced else file.whole()
            self._files[event.file] = _File(exists=False, other=left, unsettled=not event.synced)
        else:
            file.since.append(event)

    def _left(self, file: _File, keep: float, chance: random.Random, upto: int | None) -> bytes | None:
        """What is found of a file; each sector written since its sync is there with probability `keep`."""
        if file.unsettled and keep < 1 and chance.random() > keep:
            return file.other
        if not file.exists:
            return None
        content = bytearray(file.synced)
        for number, change in enumerate(file.since):
            if upto is not None and number > upto:
                break
            torn = number == upto
            if isinstance(change, Truncate):
                if torn or keep >= 1 or chance.random() < keep:
                    _apply(content, change)
                continue
            pieces = list(range(0, len(change.data), SECTOR))
            pieces = pieces[: chance.randrange(len(pieces) + 1)] if torn else pieces
            for start in pieces:
                if keep >= 1 or chance.random() < keep:
                    _write(content, change.offset + start, change.data[start : start + SECTOR])
        return bytes(content)

    def states(self, chance: random.Random, *, samples: int) -> Iterator[dict[str, bytes]]:
        """What may be found after a loss of power now: nothing unsynced, all of it, a torn beginning, any part."""
        yield self._state(0.0, chance)
        yield self._state(1.0, chance)
        yield self._state(1.0, chance, torn=True)
        for _ in range(samples):
            yield self._state(chance.choice((0.1, 0.5, 0.9)), chance)

    def _state(self, keep: float, chance: random.Random, *, torn: bool = False) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name, file in self._files.items():
            upto = chance.randrange(len(file.since)) if torn and file.since else None
            content = self._left(file, keep, chance, upto)
            if content is not None:
                found[name] = content
        return found


@dataclass(frozen=True)
class Loss:
    """One disk that a loss of power may leave."""

    at: int
    """After how many events."""
    files: dict[str, bytes]
    marks: tuple[str, ...]
    """What had been said by then."""

    def lay_out(self, folder: Path) -> None:
        """Put the files into an empty folder."""
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def losses(log: Sequence[Event], *, seed: int, samples: int = 2) -> Iterator[Loss]:
    """Every moment of a record, each with some of the disks that a loss of power then may leave; none twice.

    A moment is the boundary between two events. Marks come with what they promise, so a state that was possible
    before a mark is looked at again after it.
    """
    chance = random.Random(seed)
    disk = Disk()
    marks: tuple[str, ...] = ()
    seen: set[int] = set()
    for at, event in enumerate(log, start=1):
        disk.happen(event)
        if isinstance(event, Mark):
            marks = (*marks, event.what)
        for files in disk.states(chance, samples=samples):
            key = hash((len(marks), *sorted(files.items())))
            if key not in seen:
                seen.add(key)
                yield Loss(at, files, marks)
