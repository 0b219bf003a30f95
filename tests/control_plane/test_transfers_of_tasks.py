"""Recorded tasks as files: what comes back is what was there, and what is no such file changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.control_plane.harness import FakeInstance, history, outcome, recorded, stream, submit, world
from tests.control_plane.test_repeats import Fan, Works, failed_fan

from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.imports import read_file
from llama_deploy.errors import InvalidRequestError, TaskConflictError, TaskNotFoundError
from llama_deploy.state_stores import SQLiteStore
from llama_deploy.types.artifacts import hashes_in
from llama_deploy.types.redaction import Redaction

KEPT = Path(__file__).parent / "files" / "tasks_version_1.jsonl"
"""A file that the first version with exports has written."""


async def text_of(lines: AsyncIterator[bytes]) -> bytes:
    return b"".join([line async for line in lines])


async def lived(plane: ControlPlane, task_id: str = "lived") -> str:
    """A task with a stream, a failed attempt, and an answer."""
    works = FakeInstance(["echo"])
    await works.connect(plane)
    task = await submit(plane, text="hello\nwörld", task_id=task_id)
    step = await works.delivery()
    works.stream(step, 0, [{"n": 1}, "two", 3.5])
    works.fail(step, "not yet")
    again = await works.delivery(2)
    works.stream(again, 0, ["x"])
    works.answer(again, "done", events_from=1, events=[b'"last"'])
    await outcome(plane, task)
    return task.row.task_id


async def test_what_is_exported_comes_back_in_another_store(tmp_path: Path) -> None:
    async with world() as here, world(tmp_path / "there.db") as there:
        task_id = await lived(here.plane)
        file = await text_of(await here.plane.exports.one(task_id))
        (row,) = await there.plane.imports.take(file)
        assert row.origin == f"import:{task_id}"
        assert await history(there.plane, task_id) == await history(here.plane, task_id)
        assert await stream(there.plane, task_id) == await stream(here.plane, task_id)
        assert await outcome(there.plane, task_id) == await outcome(here.plane, task_id)
        kept = [await plane.store.load_history(task_id) for plane in (here.plane, there.plane)]
        assert kept[0] == kept[1]
        again = await text_of(await there.plane.exports.one(task_id))
        assert again.splitlines()[2:-1] == file.splitlines()[2:-1]


async def test_a_task_that_exists_is_refused_unless_it_gets_another_id() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = (await failed_fan(made.plane, works)).row.task_id
        file = await text_of(await made.plane.exports.one(old))
        with pytest.raises(TaskConflictError, match="there is a task"):
            await made.plane.imports.take(file)
        (row,) = await made.plane.imports.take(file, task_id="copy")
        assert (row.task_id, row.session_id) == ("copy", "copy")
        new, _ = await made.plane.repeats.retry("copy")
        await works.finish(new.row.task_id, a="A")
        assert (await works.joined(new.row.task_id))["got"] == {"a": "A", "b": "B", "c": "C"}


async def test_many_tasks_are_in_one_file_and_one_that_has_not_ended_is_not_taken_in() -> None:
    async with world() as here, world() as there:
        works = FakeInstance(["echo"])
        await works.connect(here.plane)
        ids = []
        for number in range(3):
            task = await submit(here.plane)
            ids.append(task.row.task_id)
            works.answer(await works.delivery(number + 1))
            await outcome(here.plane, task)
        file = await text_of(await here.plane.exports.matching("service:echo"))
        assert [row.task_id for row in await there.plane.imports.take(file)] == ids[::-1]
        with pytest.raises(InvalidRequestError, match="cannot have one id"):
            await there.plane.imports.take(file, task_id="one")
        open_task = await submit(here.plane)
        file = await text_of(await here.plane.exports.one(open_task.row.task_id))
        with pytest.raises(InvalidRequestError, match="has not ended"):
            await there.plane.imports.take(file)
        with pytest.raises(InvalidRequestError, match="needs a filter"):
            await here.plane.exports.matching(" ")
        with pytest.raises(TaskNotFoundError):
            await here.plane.exports.one("nobody")


async def test_contents_go_along(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2_000
    async with world(tmp_path / "here.db") as here, world(tmp_path / "there.db") as there:
        hash_ = hashlib.sha256(content).hexdigest()
        async with here.plane.engine.contents.upload(hash_, len(content)) as upload:
            assert upload is not None
            for position, start in enumerate(range(0, len(content), 262_144)):
                await upload.put(position, content[start : start + 262_144])
            await upload.finish()
        works = FakeInstance(["echo"])
        await works.connect(here.plane)
        mark = json.dumps({"file": {"$artifact": hash_, "size_bytes": len(content)}})
        assert hashes_in(mark.encode()) == [hash_]
        task = await submit(here.plane, text=mark)
        works.fail(await works.delivery(), retryable=False)
        await outcome(here.plane, task)
        file = await text_of(await here.plane.exports.one(task.row.task_id))
        await there.plane.imports.take(file)
        data, size = await there.plane.engine.contents.read(hash_, 0, len(content))
        assert (data, size) == (content, len(content))
        new, _ = await here.plane.repeats.retry(task.row.task_id)
        assert await here.plane.store.delete_tasks([task.row.task_id]) == 1
        await here.plane.store.delete_unused_blobs(float("inf"), 10)
        assert await here.plane.store.blob_bytes(hash_) == len(content), "the retry speaks of it"
        await recorded(new, 1)


async def test_what_people_do_not_get_to_see_is_left_out_and_the_rest_comes_back() -> None:
    async with world(orchestrator=Fan()) as here, world() as there:
        here.plane.engine.redact = Redaction(["*word*", "me"])
        works = Works()
        await works.connect(here.plane)
        task_id = (await failed_fan(here.plane, works)).row.task_id
        shown = await text_of(await here.plane.exports.one(task_id))
        assert b'"redacted":true' in shown.splitlines()[0]
        assert b'"word":"a"' not in shown
        everything = await text_of(await here.plane.exports.one(task_id, unredacted=True))
        assert b'"word":"a"' in everything
        await there.plane.imports.take(shown)
        theirs = await history(there.plane, task_id)
        ours = (await here.plane.views.history(await here.plane.engine.cache.get(task_id), after=0, limit=100)).items
        assert [entry.kind for entry in theirs] == [entry.kind for entry in ours]
        assert theirs[0].messages == ours[0].messages


# --- what is no such file ---------------------------------------------------------------------------------------------


def changed(file: bytes, line: int, key: str, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with one line changed."""
    lines = file.splitlines()
    found = json.loads(lines[line - 1])
    change(found[key] if key else found)
    lines[line - 1] = json.dumps(found).encode()
    return b"\n".join(lines) + b"\n"


async def test_what_does_not_fit_is_refused_with_its_line_and_changes_nothing() -> None:
    async with world() as here, world() as there:
        file = await text_of(await here.plane.exports.one(await lived(here.plane)))
        lines = file.splitlines()
        last = len(lines)
        entry = next(n for n, line in enumerate(lines, 1) if line.startswith(b'{"entry"'))
        chunk = next(n for n, line in enumerate(lines, 1) if line.startswith(b'{"chunk"'))
        for wrong, number, said in (
            (b"", 1, "not JSON"),
            (b"[]\n", 1, "no JSON object"),
            (b'{"format": "other"}\n', 1, "no file of exported tasks"),
            (changed(file, 1, "", lambda header: header.update(version=2)), 1, "version is 2"),
            (lines[0], 1, "no task"),
            (b"\n".join(lines[:-1]), last - 1, "in the middle"),
            (b"\n".join([lines[0], *lines[2:]]), 2, "outside of a task"),
            (b"\n".join([*lines[:entry], *lines[entry + 1 :]]), entry + 1, "is not the next one"),
            (changed(file, entry, "entry", lambda e: e["data"].update(state="gone")), entry, "no state"),
            (changed(file, entry, "entry", lambda e: e.update(data=7)), entry, "cannot be read"),
            (changed(file, entry, "entry", lambda e: e.update(at=5.0)), last, "changed after its export"),
            (changed(file, chunk, "chunk", lambda c: c.update(first=9)), chunk, "event 9"),
            (changed(file, chunk, "chunk", lambda c: c.update(count=9)), chunk, "not the next one"),
            (changed(file, last, "end", lambda e: e.update(entries=9)), last, "not complete"),
            (changed(file, 2, "task", lambda t: t.pop("state")), 2, "fields"),
            (file.replace(b'"completed"', b'"working"', 1), last, "changed after"),
            (b"\xff\xfe" + file, 1, "not JSON"),
        ):
            with pytest.raises(InvalidRequestError) as refused:
                await there.plane.imports.take(wrong)
            assert said in str(refused.value), (said, str(refused.value))
            assert refused.value.details["line"] == number, (said, refused.value)
        assert await there.plane.store.count_tasks() == {}


async def test_lines_that_only_a_later_version_writes_are_skipped() -> None:
    async with world() as here, world() as there:
        task_id = await lived(here.plane)
        lines = (await text_of(await here.plane.exports.one(task_id))).splitlines(keepends=True)
        lines.insert(3, b'{"note": {"of": "a later version"}}\n')
        digest = hashlib.sha256(b"".join(lines[1:-1])).hexdigest()
        end = json.loads(lines[-1])
        end["end"]["sha256"] = digest
        lines[-1] = msgspec.json.encode(end) + b"\n"
        assert len(await there.plane.imports.take(b"".join(lines))) == 1


def told(file: bytes) -> list[Any] | None:
    """What a file says, `None` where it is refused; nothing else may happen."""
    try:
        return [(section.row, section.history, section.chunks) for section in read_file(file)]
    except InvalidRequestError as refused:
        return None if refused.details["line"] else []


@given(st.binary(min_size=1, max_size=200), st.integers(0, 3_500), st.integers(0, 50))
def test_a_damaged_file_is_refused_or_says_the_same(rubbish: bytes, at: int, length: int) -> None:
    kept = KEPT.read_bytes()
    assert told(kept[:at] + rubbish + kept[at + length :]) in (None, told(kept))


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_rubbish_is_refused_and_never_crashes(rubbish: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="of the file"):
        read_file(rubbish)


async def test_a_file_of_the_first_version_is_readable(tmp_path: Path) -> None:
    async with world(SQLiteStore(tmp_path / "store.db")) as made:
        rows = await made.plane.imports.take(KEPT.read_bytes())
        assert [row.task_id for row in rows] == ["kept-by-the-tests"]
        assert (await outcome(made.plane, "kept-by-the-tests")).result == "done"
        events = await stream(made.plane, "kept-by-the-tests")
        assert [event for event in events if "attempt" not in str(event)] == [{"n": 1}, "two", 3.5, "x", "last"]
        await FakeInstance(["echo"]).connect(made.plane)
        again, _ = await made.plane.repeats.replay("kept-by-the-tests", step_id="kept-by-the-tests:1", key="again")
        assert again.row.origin == "replay:kept-by-the-tests"
