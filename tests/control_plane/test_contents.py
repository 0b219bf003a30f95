"""Contents: stored once under their hash, sent in bounded parts, noted with the tasks that speak of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.control_plane.harness import (
    FakeInstance,
    LinkedRunner,
    World,
    history,
    outcome,
    stream,
    submit,
    until,
    world,
)

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.errors import ArtifactNotFoundError, LimitExceededError, LlamaDeployError
from llama_deploy.messages import frames
from llama_deploy.messages.contents import (
    PART_BYTES,
    WINDOW_PARTS,
    ContentKept,
    ContentPart,
    ContentRefused,
    ContentTaken,
    ContentWanted,
    DropContent,
    GetContent,
    OfferContent,
    PutContent,
)
from llama_deploy.runtime.files import prepare
from llama_deploy.services import HumanService, ServiceContext, ToolService, service
from llama_deploy.state_stores import MemoryStore
from llama_deploy.state_stores.base import BLOB_PART_BYTES
from llama_deploy.types.artifacts import MARK, Artifact, File

BIG = bytes(range(256)) * (PART_BYTES * 5 // 512) + b"end"
"""Two parts and a half."""


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def mark(data: bytes, **fields: Any) -> dict[str, Any]:
    return {MARK: hash_of(data), "size_bytes": len(data), **fields}


async def keep(plane: ControlPlane, data: bytes) -> dict[str, Any]:
    """Store a content, and what stands for it."""
    content = await prepare(data)
    async with plane.engine.contents.upload(content.hash, content.size_bytes) as upload:
        if upload is not None:
            for position in range(content.parts):
                await upload.put(position, await content.part(position))
            await upload.finish()
    return mark(data)


async def users(plane: ControlPlane, data: bytes) -> bool:
    """Whether some task needs a content."""
    await plane.store.delete_unused_blobs(plane.engine.clock.now() + 1e9, 1_000)
    return await plane.store.blob_bytes(hash_of(data)) is not None


def test_parts_travel_as_they_are_stored() -> None:
    assert PART_BYTES == BLOB_PART_BYTES
    assert PART_BYTES <= 1024 * 1024


# --- services -------------------------------------------------------------------------------------------------------


@service
async def reverse(data: Artifact, context: ServiceContext) -> Artifact:
    return await context.save((await data.read())[::-1], name="reversed.csv")


@service
async def length(data: bytes | None = None) -> int:
    return -1 if data is None else len(data)


@service
async def many() -> dict[str, Any]:
    return {"first": b"one", "rest": [b"two", {"deep": bytearray(b"one")}], "n": 1}


@service
def in_a_thread(data: Artifact, context: ServiceContext) -> Artifact:
    with data.open() as file:
        first = file.read(3)
        file.seek(-3, 2)
        last = file.read()
    return context.save_from_thread(iter([first, last]), name="ends")


@service
async def pieces(context: ServiceContext) -> Artifact:
    async def made() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"%d," % number

    return await context.save(made(), name="numbers.txt")


async def serving(made: World, *services: Any) -> LinkedRunner:
    local = LinkedRunner(services)
    await local.connect(made.plane)
    return local


async def read(plane: ControlPlane, artifact: Any) -> bytes:
    """The content of an artifact in a result."""
    data = b""
    while True:
        part, size = await plane.engine.contents.read(artifact[MARK], len(data), PART_BYTES)
        data += part
        if len(data) >= size:
            return data


async def test_a_service_takes_and_returns_contents_of_several_parts(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await serving(made, reverse)
        given = await keep(made.plane, BIG)
        result = await outcome(
            made.plane, await submit(made.plane, "reverse", msgspec.json.encode({"data": given}).decode())
        )
        assert result.value == mark(BIG[::-1], name="reversed.csv", media_type="text/csv")
        assert await read(made.plane, result.value) == BIG[::-1]
        assert await users(made.plane, BIG)
        assert await users(made.plane, BIG[::-1])


async def test_bytes_anywhere_in_a_result_are_stored_once_each() -> None:
    async with world() as made:
        await serving(made, many)
        result = await outcome(made.plane, await submit(made.plane, "many", "{}"))
        plain = {"media_type": "application/octet-stream", "name": None}
        one, two = mark(b"one", **plain), mark(b"two", **plain)
        assert result.value == {"first": one, "rest": [two, {"deep": one}], "n": 1}
        assert await read(made.plane, two) == b"two"


async def test_a_parameter_of_bytes_is_given_the_content() -> None:
    async with world() as made:
        await serving(made, length)
        given = await keep(made.plane, BIG)
        asked = msgspec.json.encode({"data": given}).decode()
        assert (await outcome(made.plane, await submit(made.plane, "length", asked))).value == len(BIG)
        assert (
            await outcome(made.plane, await submit(made.plane, "length", msgspec.json.encode(given).decode()))
        ).value == len(BIG)
        assert (await outcome(made.plane, await submit(made.plane, "length", '{"data": "abc"}'))).value == 3
        assert (await outcome(made.plane, await submit(made.plane, "length", "{}"))).value == -1


async def test_code_in_a_thread_reads_an_artifact_like_a_file() -> None:
    async with world() as made:
        await serving(made, in_a_thread)
        given = await keep(made.plane, BIG)
        entry = await submit(made.plane, "in_a_thread", msgspec.json.encode(given).decode())
        assert await read(made.plane, (await outcome(made.plane, entry)).value) == BIG[:3] + b"end"


async def test_an_iterator_becomes_a_content_and_an_empty_one_too() -> None:
    @service
    async def nothing() -> bytes:
        return b""

    async with world() as made:
        await serving(made, pieces, nothing)
        result = await outcome(made.plane, await submit(made.plane, "pieces", "{}"))
        assert await read(made.plane, result.value) == b"0,1,2,3,4,5,6,7,8,9,"
        assert result.value["media_type"] == "text/plain"
        empty = await outcome(made.plane, await submit(made.plane, "nothing", "{}"))
        assert empty.value["size_bytes"] == 0
        assert await read(made.plane, empty.value) == b""


async def test_a_file_is_returned_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(BIG)

    @service
    async def report() -> dict[str, Any]:
        return {"report": File(tmp_path / "report.pdf")}

    @service
    async def gone() -> File:
        return File(tmp_path / "none")

    async with world() as made:
        await serving(made, report, gone)
        found = (await outcome(made.plane, await submit(made.plane, "report", "{}"))).value["report"]
        assert (found["name"], found["media_type"], found["size_bytes"]) == ("report.pdf", "application/pdf", len(BIG))
        assert await read(made.plane, found) == BIG


async def test_tools_return_contents_too() -> None:
    def picture() -> bytes:
        return b"pixels"

    async with world() as made:
        await serving(made, ToolService([picture]))
        result = await outcome(made.plane, await submit(made.plane, "tools", '{"tool": "picture"}'))
        assert await read(made.plane, result.value) == b"pixels"


async def test_an_event_may_speak_of_a_content(tmp_path: Path) -> None:
    @service
    async def preview(context: ServiceContext) -> str:
        context.stream({"preview": await context.save(b"small")})
        return "done"

    async with world(tmp_path / "s.db") as made:
        await serving(made, preview)
        entry = await submit(made.plane, "preview", "{}")
        await outcome(made.plane, entry)
        (event,) = await stream(made.plane, entry)
        assert await read(made.plane, event["preview"]) == b"small"
        assert await users(made.plane, b"small")


async def test_a_person_may_answer_with_a_content() -> None:
    async with world() as made:
        await serving(made, HumanService("person"))
        given = await keep(made.plane, b"scan")
        entry = await submit(made.plane, "person", "?")
        await until(lambda: made.plane.views.task(entry).state.value == "input_required")
        with pytest.raises(ArtifactNotFoundError):
            await made.plane.signals.send_input(entry.row.task_id, mark(b"never"))
        await made.plane.signals.send_input(entry.row.task_id, given)
        await outcome(made.plane, entry)
        assert await users(made.plane, b"scan")


# --- what is not there ----------------------------------------------------------------------------------------------


async def test_an_input_that_speaks_of_a_missing_content_is_refused() -> None:
    async with world() as made:
        await serving(made, length)
        for text in (msgspec.json.encode(mark(b"x")).decode(), msgspec.json.encode({"data": [mark(b"x")]}).decode()):
            with pytest.raises(ArtifactNotFoundError, match=hash_of(b"x")):
                await submit(made.plane, "length", text)
        assert await made.plane.store.count_tasks() == {}


async def test_a_result_that_speaks_of_a_missing_content_fails_the_step() -> None:
    @service
    async def liar() -> dict[str, Any]:
        return mark(b"never stored")

    @service
    async def chatty(context: ServiceContext) -> str:
        context.stream({"a": mark(b"never stored")})
        await asyncio.Event().wait()
        return ""

    async with world() as made:
        await serving(made, liar, chatty)
        for name in ("liar", "chatty"):
            result = await outcome(made.plane, await submit(made.plane, name, "{}"))
            assert result.error is not None
            assert result.error.code == ArtifactNotFoundError.code


async def test_a_hash_of_another_content_is_refused() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        instance.send(OfferContent(1, hash_of(b"other"), 3))
        await instance.got(ContentWanted)
        instance.send(PutContent(1, 0, b"abc"))
        refused = await instance.got(ContentRefused)
        assert msgspec.json.decode(refused.problem)["code"] == "LD523"
        assert await made.plane.store.blob_bytes(hash_of(b"other")) is None
        instance.send(OfferContent(2, hash_of(b"other"), 5))
        await instance.got(ContentWanted, 2)
        instance.send(PutContent(2, 0, b"other"))
        await instance.got(ContentKept)
        instance.send(GetContent(3, hash_of(b"other"), 1, 3))
        part: ContentPart = await instance.got(ContentPart)
        assert (part.data, part.size_bytes) == (b"the", 5)


@pytest.mark.parametrize(
    "op",
    [
        OfferContent(1, "x", 1),
        OfferContent(1, "A" * 64, 1),
        OfferContent(1, hash_of(b""), -1),
        OfferContent(1, hash_of(b""), 2**60),
        GetContent(1, "../../etc/passwd", 0, 1),
        GetContent(1, hash_of(b"none"), 0, 1),
        GetContent(1, hash_of(b"none"), -5, -5),
    ],
)
async def test_what_makes_no_sense_is_refused_and_the_connection_stays(op: Any) -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        instance.send(op)
        await instance.got(ContentRefused)
        assert not instance.closed


async def test_parts_out_of_turn_and_too_many_at_once_are_refused() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        instance.send(OfferContent(1, hash_of(BIG), len(BIG)))
        await instance.got(ContentWanted)
        instance.send(PutContent(1, 1, BIG[PART_BYTES : 2 * PART_BYTES]))
        await instance.got(ContentRefused)
        instance.send(OfferContent(2, hash_of(b"z"), 1000 * PART_BYTES))
        await instance.got(ContentWanted, 2)
        instance.send(*(PutContent(2, number, bytes(PART_BYTES)) for number in range(WINDOW_PARTS + 2)))
        await instance.got(ContentRefused, 2)
        instance.send(PutContent(99, 0, b"late"), DropContent(99))
        assert not instance.closed


# --- limits ---------------------------------------------------------------------------------------------------------


async def test_the_size_of_one_and_of_all_of_a_task_is_limited() -> None:
    settings = EngineSettings(artifact_bytes_max=100, artifacts_per_task_bytes_max=150)

    @service
    async def large() -> bytes:
        return bytes(101)

    @service
    async def two() -> list[bytes]:
        return [bytes(80), b"1" * 80]

    async with world(settings=settings) as made:
        await serving(made, large, two, length)
        for name, setting in (("large", "artifact_bytes_max"), ("two", "artifacts_per_task_bytes_max")):
            result = await outcome(made.plane, await submit(made.plane, name, "{}"))
            assert result.error is not None
            assert result.error.code == LimitExceededError.code
            assert setting in result.error.message
        given = [await keep(made.plane, bytes(80)), await keep(made.plane, b"1" * 80)]
        with pytest.raises(LimitExceededError, match="160 bytes"):
            await submit(made.plane, "length", msgspec.json.encode(given).decode())


class Watched(LinkedRunner):
    """Keeps the size of everything that travels."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parts: list[int] = []
        self.under_way = 0
        self.most_under_way = 0

    def _send(self, operations: list[Any]) -> None:
        for op in operations:
            if isinstance(op, PutContent):
                self.parts.append(len(op.data))
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
        for frame in frames.frames_of(operations):
            assert len(frame) < 2 * frames.FRAME_BYTES_TARGET
        super()._send(operations)

    def _receive(self, operations: list[Any]) -> None:
        for op in operations:
            if isinstance(op, ContentPart):
                self.parts.append(len(op.data))
            self.under_way -= isinstance(op, ContentTaken)
        super()._receive(operations)


async def test_large_contents_go_in_small_parts_a_few_at_a_time(tmp_path: Path) -> None:
    count = 40

    @service
    async def grow(context: ServiceContext) -> Artifact:
        def parts() -> Iterator[bytes]:
            for number in range(count):
                yield bytes([number]) * PART_BYTES

        return await context.save(parts())

    @service
    async def weigh(data: Artifact) -> int:
        return sum([len(chunk) async for chunk in data.chunks()])

    async with world(tmp_path / "s.db") as made:
        local = Watched([grow, weigh])
        await local.connect(made.plane)
        large = await outcome(made.plane, await submit(made.plane, "grow", "{}"))
        weighed = await outcome(made.plane, await submit(made.plane, "weigh", large.result))
        assert weighed.value == count * PART_BYTES
        assert local.parts == [PART_BYTES] * 2 * count
        assert local.most_under_way == WINDOW_PARTS


async def test_a_content_that_is_there_is_not_sent_again() -> None:
    async with world() as made:
        local = Watched([reverse])
        await local.connect(made.plane)
        given = await keep(made.plane, BIG)
        await keep(made.plane, BIG[::-1])
        await outcome(made.plane, await submit(made.plane, "reverse", msgspec.json.encode(given).decode()))
        assert local.most_under_way == 0


# --- losses and crashes ---------------------------------------------------------------------------------------------


class Slow(MemoryStore):
    """Takes no part of a content until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()
        self.asked = 0

    async def put_blob_part(self, *args: Any, **options: Any) -> None:
        self.asked += 1
        if self.asked > 1:
            await self.let.wait()
        await super().put_blob_part(*args, **options)


async def test_an_upload_goes_on_after_its_connection_was_lost() -> None:
    store = Slow()
    async with world(store) as made:
        local = Watched([reverse])
        await local.connect(made.plane)
        given = await keep_all(made.plane, store, BIG)
        store.asked, store.let = 0, asyncio.Event()
        entry = await submit(made.plane, "reverse", msgspec.json.encode(given).decode())
        await until(lambda: store.asked > 1)
        local.drop()
        store.let.set()
        await local.connect(made.plane)
        assert await read(made.plane, (await outcome(made.plane, entry)).value) == BIG[::-1]


async def keep_all(plane: ControlPlane, store: Slow, data: bytes) -> dict[str, Any]:
    store.let.set()
    return await keep(plane, data)


async def test_a_crash_in_mid_upload_leaves_nothing_usable_and_the_step_goes_on(tmp_path: Path) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @service
    async def slowly(context: ServiceContext) -> Artifact:
        async def made() -> AsyncIterator[bytes]:
            yield BIG

        artifact = await context.save(made())
        begun.set()
        await go.wait()
        return artifact

    async with world(tmp_path / "s.db") as made:
        local = LinkedRunner([slowly])
        await local.connect(made.plane)
        instance = FakeInstance(["other"], instance_id="two")
        await instance.connect(made.plane)
        instance.send(OfferContent(1, hash_of(b"x" * 300_000), 300_000))
        await instance.got(ContentWanted)
        instance.send(PutContent(1, 0, b"x" * PART_BYTES))
        await instance.got(ContentTaken)
        entry = await submit(made.plane, "slowly", "{}", task_id="t")
        await begun.wait()
        await made.crash()  # between the upload and the answer, and in the middle of the other upload
        go.set()
        await made.start()
        assert await made.plane.store.blob_bytes(hash_of(b"x" * 300_000)) is None
        await local.connect(made.plane)
        assert await read(made.plane, (await outcome(made.plane, "t")).value) == BIG
        assert await users(made.plane, BIG)
        del entry


async def test_what_a_task_speaks_of_is_known_again_after_a_restart(tmp_path: Path) -> None:
    settings = EngineSettings(artifacts_per_task_bytes_max=len(BIG) + 10)

    @service
    async def more(data: Artifact, context: ServiceContext) -> Artifact:
        del data
        return await context.save(b"0123456789+")

    async with world(tmp_path / "s.db", settings=settings) as made:
        given = await keep(made.plane, BIG)
        instance = FakeInstance(["more"])
        await instance.connect(made.plane)
        entry = await submit(made.plane, "more", msgspec.json.encode(given).decode(), task_id="t")
        await made.crash()
        await made.start()
        await serving(made, more)
        result = await outcome(made.plane, "t")
        assert result.error is not None
        assert "artifacts_per_task_bytes_max" in result.error.message
        assert (await history(made.plane, "t"))[0].kind == "submitted"
        del entry


async def test_a_content_that_went_away_before_its_answer_fails_the_step() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        given = await keep(made.plane, b"gone soon")
        await submit(made.plane, "echo", task_id="t")
        step = await instance.delivery()
        assert await made.plane.store.delete_unused_blobs(made.plane.engine.clock.now() + 1e9, 10) == 1
        instance.answer(step, msgspec.json.encode(given).decode())
        result = await outcome(made.plane, "t")
        assert result.error is not None
        assert result.error.code == ArtifactNotFoundError.code


async def test_what_waits_behind_a_look_into_the_store_is_done_in_order() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=8)
        await instance.connect(made.plane)
        given = await keep(made.plane, b"x")
        made.plane.engine.contents._known.clear()
        await submit(made.plane, "echo", task_id="a")
        await submit(made.plane, "echo", task_id="b")
        first, second = await instance.delivery(1), await instance.delivery(2)
        instance.stream(first, 0, [{"see": given}])
        instance.stream(first, 1, [{"n": 2}])
        instance.answer(first, msgspec.json.encode(given).decode(), events_from=2)
        instance.answer(second)
        assert (await outcome(made.plane, "b")).result == "done"
        await outcome(made.plane, "a")
        assert await stream(made.plane, "a") == [{"see": given}, {"n": 2}]


async def test_errors_of_the_store_end_a_transfer_and_nothing_else() -> None:
    class Broken(MemoryStore):
        async def put_blob_part(self, *args: Any, **options: Any) -> None:
            raise RuntimeError("disk")

    async with world(Broken()) as made:
        local = await serving(made, many)
        with pytest.raises(LlamaDeployError, match="failed on a transfer"):
            await local.runner.transfers.save(b"x")
