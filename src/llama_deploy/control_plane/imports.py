"""Taking in recorded tasks from a file: all of it is checked before anything is written.

What is not as an export writes it is refused with the number of its line. A task is taken in whole, in one commit, and
only one that has ended: what was under way elsewhere would be under way twice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from llama_deploy.control_plane import state_changes
from llama_deploy.control_plane.contents import check_hash
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.exports import FORMAT, FORMAT_VERSION, PART_BYTES
from llama_deploy.control_plane.forks import Renaming
from llama_deploy.control_plane.records import Record, decode_record
from llama_deploy.control_plane.refusals import check_id
from llama_deploy.control_plane.session_state import PrivateState
from llama_deploy.errors import CommitConflictError, InvalidRequestError, LlamaDeployError, TaskConflictError
from llama_deploy.state_stores.base import HistoryRow, StreamChunk, TaskRow
from llama_deploy.types import FINAL_STATES, Origin, TaskDefinition, TaskResult, TaskState

_FINAL = frozenset(state.value for state in FINAL_STATES)

Struct = TypeVar("Struct", bound=msgspec.Struct)


class _Entry(msgspec.Struct, frozen=True):
    task_id: str
    seq: int
    at: float
    kind: str
    data: msgspec.Raw


class _Chunk(msgspec.Struct, frozen=True):
    task_id: str
    first: int
    count: int
    step_id: str
    attempt: int
    attempt_first: int
    at: float
    data: msgspec.Raw


class _Content(msgspec.Struct, frozen=True):
    hash: str
    size_bytes: int
    data: str


class _End(msgspec.Struct, frozen=True):
    task_id: str
    entries: int
    chunks: int
    contents: int
    sha256: str


class Section:
    """One task of a file, read and checked."""

    def __init__(self, row: TaskRow) -> None:
        self.row = row
        self.history: list[HistoryRow] = []
        self.chunks: list[StreamChunk] = []
        self.contents: dict[str, bytearray] = {}
        self.digest = hashlib.sha256()


def read_file(data: bytes) -> list[Section]:
    """Every task of a file. Raises `InvalidRequestError` that names the line and what is wrong with it."""
    lines = _lines(data)
    number, first = next(lines, (1, b""))
    header = _object(number, first)
    if header.get("format") != FORMAT:
        raise _wrong(number, "this is no file of exported tasks", f'it begins with {{"format": "{FORMAT}", …')
    if not isinstance(header.get("version"), int) or header["version"] > FORMAT_VERSION:
        raise _wrong(number, f"its version is {header.get('version')!r}", f"this program reads up to {FORMAT_VERSION}")
    sections: list[Section] = []
    current: Section | None = None
    for number, line in lines:
        found = _object(number, line)
        key = next(iter(found), "")
        if key == "task":
            if current is not None:
                raise _wrong(number, f"the section of task {current.row.task_id} has no end")
            current = Section(_read(number, found[key], TaskRow))
        elif current is None:
            raise _wrong(number, f"{key!r} stands outside of a task")
        elif key == "end":
            _close(number, current, _read(number, found[key], _End))
            sections.append(current)
            current = None
            continue
        else:
            _take(number, current, key, line)
        current.digest.update(line + b"\n")
    if current is not None:
        raise _wrong(number, f"the file ends in the middle of task {current.row.task_id}", "it was cut off")
    if not sections:
        raise _wrong(number, "there is no task in the file")
    return sections


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _take(number: int, section: Section, key: str, line: bytes) -> None:
    """One line of a section; kinds that this version does not know are skipped."""
    if key == "entry":
        entry = _raw(number, line, "entry", _Entry)
        row = HistoryRow(entry.task_id, entry.seq, entry.at, entry.kind, bytes(entry.data))
        if row.seq != len(section.history) + 1 or row.task_id != section.row.task_id:
            raise _wrong(number, f"entry {row.seq} of {row.task_id} is not the next one of {section.row.task_id}")
        _check_entry(number, section, row)
        section.history.append(row)
    elif key == "chunk":
        raw = _raw(number, line, "chunk", _Chunk)
        chunk = StreamChunk(**{**msgspec.structs.asdict(raw), "data": bytes(raw.data)})
        end = section.chunks[-1].first + section.chunks[-1].count if section.chunks else 0
        events = _decoded(number, chunk.data)
        fits = isinstance(events, list) and len(events) == chunk.count > 0
        if chunk.first != end or chunk.task_id != section.row.task_id or not fits:
            raise _wrong(number, f"event {chunk.first} is not the next one of the stream")
        section.chunks.append(chunk)
    elif key == "content":
        content = _raw(number, line, "content", _Content)
        try:
            check_hash(content.hash)
            part = base64.b64decode(content.data, validate=True)
        except (InvalidRequestError, binascii.Error) as error:
            raise _wrong(number, "the content cannot be read", str(error)) from error
        section.contents.setdefault(content.hash, bytearray()).extend(part)


def _check_entry(number: int, section: Section, row: HistoryRow) -> None:
    """An entry has to be what this program can show, rebuild a task from, and fork."""
    if section.history and _outcome(decode_record(section.history[-1].data)):
        raise _wrong(number, "an entry follows the end of the task")
    try:
        unfit = _unfit(row, decode_record(row.data))
    except (ValueError, TypeError) as error:  # msgspec's and pydantic's errors are ValueErrors
        unfit = str(error)
    if unfit is not None:
        raise _wrong(number, f"entry {row.seq} cannot be read", unfit)


def _unfit(row: HistoryRow, record: Record) -> str | None:
    """Why a record is none of its task. Raises `ValueError` where a part of it has not the form that it should."""
    if record.state not in {state.value for state in TaskState}:
        return f"there is no state {record.state!r}"
    if row.seq == 1:
        definition = TaskDefinition.model_validate(msgspec.json.decode(bytes(record.definition)))
        if definition.task_id != row.task_id:
            return f"its definition is that of task {definition.task_id!r}"
    outcome = _outcome(record)
    if outcome:
        TaskResult.model_validate_json(outcome)
    for message in record.messages:
        task_id, _, position = message.step_id.rpartition(":")
        if task_id != row.task_id or not position.isascii() or not position.isdigit():
            return f"step {message.step_id!r} is none of this task"
    return None


def _outcome(record: Record) -> bytes:
    return bytes(record.result if record.outcome_is_result else record.outcome)


def _check_changes(number: int, section: Section) -> None:
    """The changes of state have to follow from each other."""
    private = PrivateState(section.row.task_id)
    for entry in section.history:
        record = decode_record(entry.data)
        try:
            if record.change is not None:
                state_changes.read(record.change, private, bytes(record.result))
        except ValueError as error:
            raise _wrong(number, f"entry {entry.seq} cannot be read", str(error)) from error


def _close(number: int, section: Section, end: _End) -> None:
    """A section as a whole."""
    row = section.row
    counts = (len(section.history), len(section.chunks), len(section.contents))
    if (end.entries, end.chunks, end.contents) != counts or end.task_id != row.task_id:
        raise _wrong(number, f"task {row.task_id} is not complete", "lines are missing, or were added")
    if end.sha256 != section.digest.hexdigest():
        raise _wrong(number, f"task {row.task_id} was changed after its export", "its hash does not fit")
    _check_changes(number, section)
    if row.state not in _FINAL or row.ended_at is None:
        raise _wrong(
            number,
            f"task {row.task_id} has not ended: it is {row.state}",
            "it would be under way twice",
            fix="export it again once it has ended",
        )
    if not section.history or row.version != len(section.history):
        raise _wrong(number, f"task {row.task_id} has {row.version} entries, and {len(section.history)} are there")
    if not _outcome(decode_record(section.history[-1].data)):
        raise _wrong(number, f"the last entry of task {row.task_id} does not end it")
    times = [row.created_at, row.updated_at, row.ended_at, *(entry.at for entry in section.history)]
    if not all(math.isfinite(at) for at in times):
        raise _wrong(number, f"task {row.task_id} has a time that is none")
    for hash_, content in section.contents.items():
        if hashlib.sha256(content).hexdigest() != hash_:
            raise _wrong(number, f"the content {hash_[:12]}… is not what its hash says")


class Imports:
    """Takes tasks in, into one engine's store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def take(self, data: bytes, *, task_id: str | None = None) -> list[TaskRow]:
        """Take in every task of a file; with `task_id`, its one task under that id. Returns their rows.

        Raises `InvalidRequestError` for what is no such file, and `TaskConflictError` for a task that exists; nothing
        was changed then. A crash leaves whole tasks, of which a repetition refuses those that are there.
        """
        sections = read_file(data)
        settings = self._engine.settings
        check_id("task_id", task_id, settings.id_length_max)
        if task_id is not None and len(sections) != 1:
            raise InvalidRequestError(f"{len(sections)} tasks cannot have one id", fix="import them without a new id")
        taken = [_renamed(section, task_id) for section in sections]
        for section in taken:
            for name in ("task_id", "session_id"):
                check_id(name, getattr(section.row, name), settings.id_length_max)
        ids = [section.row.task_id for section in taken]
        if len(set(ids)) != len(ids):
            raise InvalidRequestError("a task is twice in the file")
        for each in ids:
            if await self._engine.cache.load(each) is not None:
                raise _exists(each)
        for section in taken:
            await self._write(section)
        return [section.row for section in taken]

    async def _write(self, section: Section) -> None:
        store, contents = self._engine.store, self._engine.contents
        for hash_, data in section.contents.items():
            async with contents.upload(hash_, len(data)) as upload:
                if upload is not None:
                    for position, start in enumerate(range(0, len(data), PART_BYTES)):
                        await upload.put(position, bytes(data[start : start + PART_BYTES]))
                    await upload.finish()
        try:
            await store.import_task(section.row, section.history, section.chunks)
        except CommitConflictError as error:
            raise _exists(section.row.task_id) from error
        for hash_ in section.contents:
            await store.use_blob(hash_, section.row.task_id)


def _renamed(section: Section, task_id: str | None) -> Section:
    """A task as it is taken in: it says where it came from, and has another id if it is given one."""
    row = section.row
    new = task_id or row.task_id
    same = Renaming(row.task_id, new)
    made = Section(
        msgspec.structs.replace(
            row,
            task_id=new,
            session_id=same.text(row.session_id),
            origin=Origin(kind="import", task_id=row.task_id).text,
            paused=0,
        )
    )
    made.contents = section.contents
    made.history = [HistoryRow(new, e.seq, e.at, e.kind, same.encoded(e.data)) for e in section.history]
    made.chunks = [
        msgspec.structs.replace(c, task_id=new, step_id=same.text(c.step_id), data=same.encoded(c.data))
        for c in section.chunks
    ]
    return made


def _exists(task_id: str) -> TaskConflictError:
    return TaskConflictError(
        f"there is a task {task_id}", fix="import it under another id: --as NEW_ID", task_id=task_id
    )


def _object(number: int, line: bytes) -> dict[str, Any]:
    found = _decoded(number, line)
    if not isinstance(found, dict):
        raise _wrong(number, "it is no JSON object")
    return found


def _decoded(number: int, encoded: bytes) -> Any:
    try:
        return msgspec.json.decode(encoded)
    except (ValueError, RecursionError) as error:
        raise _wrong(number, "it is not JSON", str(error)) from error


def _read(number: int, value: Any, kind: type[Struct]) -> Struct:
    try:
        return msgspec.convert(value, kind)
    except ValueError as error:
        raise _wrong(number, "it has not the fields that it should", str(error)) from error


def _raw(number: int, line: bytes, key: str, kind: type[Struct]) -> Struct:
    """The value under the one key of a line, with the JSON inside of it byte by byte as it stands there."""
    try:
        found = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(bytes(found[key]), type=kind)
    except (ValueError, RecursionError) as error:
        raise _wrong(number, "it has not the fields that it should", str(error)) from error


def _wrong(number: int, what: str, why: str = "", *, fix: str = "") -> LlamaDeployError:
    return InvalidRequestError(f"line {number} of the file: {what}", why=why, fix=fix, line=number)
