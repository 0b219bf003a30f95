"""Contents: taking them in part by part, giving them out, and knowing which of those that are spoken of are there.

A content is finished when all its parts are in the store and their hash is the one that it was announced under; until
then it cannot be used, and an upload that nobody goes on with is removed by retention. What a task speaks of is noted
with the task, in the commit that records it, and kept as long as the task.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llama_deploy.control_plane.large import cut, whole
from llama_deploy.control_plane.records import Record, encode_record
from llama_deploy.control_plane.refusals import resolve
from llama_deploy.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    CommitConflictError,
    InvalidRequestError,
    LimitExceededError,
    LlamaDeployError,
    StoreUnavailableError,
)
from llama_deploy.messages.contents import PART_BYTES
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.base import HistoryRow, Transition
from llama_deploy.types.artifacts import MARK_BYTES, hashes_in

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine
    from llama_deploy.control_plane.tasks import TaskEntry

KNOWN_MAX = 20_000
"""Contents whose presence is remembered; of others the store is asked."""
ARTIFACTS_PER_MESSAGE_MAX = 1_000
"""Artifacts in one input, result, event or message."""


class Upload:
    """One content that is being taken in."""

    def __init__(self, contents: Contents, hash_: str, size_bytes: int) -> None:
        self._contents = contents
        self._hash = hash_
        self._size_bytes = size_bytes
        self._digest = hashlib.sha256()
        self._next = 0
        self._bytes = 0

    @property
    def complete(self) -> bool:
        """Whether every part is there."""
        return self._bytes >= self._size_bytes

    async def put(self, position: int, data: bytes) -> None:
        """Take the next part. Raises `InvalidRequestError` for any other."""
        expected = min(PART_BYTES, self._size_bytes - self._bytes)
        if position != self._next or len(data) != expected:
            raise InvalidRequestError(
                f"part {position} of {len(data)} bytes was sent where part {self._next} of {expected} bytes is wanted"
            )
        self._digest.update(data)
        self._bytes += len(data)
        self._next += 1
        engine = self._contents.engine
        await engine.store.put_blob_part(self._hash, position, data, at=engine.clock.now())
        failpoint("contents.after_part")

    async def finish(self) -> None:
        """Check the whole content; from now on it can be used. Raises `ArtifactCorruptError`."""
        if self._bytes != self._size_bytes or self._digest.hexdigest() != self._hash:
            raise ArtifactCorruptError(
                f"what was sent is not the content {self._hash[:12]}…",
                why=f"{self._bytes} of {self._size_bytes} bytes came, with the hash {self._digest.hexdigest()[:12]}…",
                fix="send it again; a file must not change while it is sent",
            )
        engine = self._contents.engine
        await engine.store.finish_blob(self._hash, self._size_bytes, engine.clock.now())
        failpoint("contents.after_finish")
        self._contents.remember(self._hash, self._size_bytes)


class Contents:
    """The contents of one engine's store."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._known: OrderedDict[str, int] = OrderedDict()
        self._uploading: dict[str, asyncio.Future[None]] = {}

    # --- in and out -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def upload(self, hash_: str, size_bytes: int) -> AsyncIterator[Upload | None]:
        """Take a content in; `None` where it is there already. Of one content there is one upload at a time.

        Raises `LimitExceededError` and `InvalidRequestError`. Leaving it without `finish` leaves nothing usable.
        """
        check_hash(hash_)
        limit = self.engine.settings.artifact_bytes_max
        if not 0 <= size_bytes <= limit:
            raise LimitExceededError(
                f"the content has {size_bytes} bytes",
                why=f"artifact_bytes_max is {limit}",
                fix="raise artifact_bytes_max, or pass an address of the data",
                setting="artifact_bytes_max",
                limit=limit,
            )
        while (earlier := self._uploading.get(hash_)) is not None:
            await asyncio.shield(earlier)
        mine = self._uploading[hash_] = asyncio.get_running_loop().create_future()
        try:
            self._known.pop(hash_, None)  # it may have been removed meanwhile: nobody uses it so far
            there = await self.size(hash_)
            if there == size_bytes:  # it was unused, perhaps, and about to be removed
                await self.engine.store.finish_blob(hash_, size_bytes, self.engine.clock.now())
            elif there is not None:
                raise ArtifactCorruptError(f"the content {hash_[:12]}… has {there} bytes and not {size_bytes}")
            yield None if there is not None else Upload(self, hash_, size_bytes)
        finally:
            del self._uploading[hash_]
            resolve(mine)

    async def size(self, hash_: str) -> int | None:
        """The size of a content, `None` where it is not there."""
        known = self._known.get(hash_)
        if known is None:
            known = await self.engine.store.blob_bytes(hash_)
            if known is not None:
                self.remember(hash_, known)
        return known

    async def read(self, hash_: str, first: int, limit: int) -> tuple[bytes, int]:
        """A range of a content and its whole size. Raises `ArtifactNotFoundError`."""
        check_hash(hash_)
        size = await self.engine.store.blob_bytes(hash_)
        if size is None:
            raise not_there(hash_)
        if not limit or first >= size:
            return b"", size
        try:
            return await self.engine.store.load_blob(hash_, first=first, limit=limit), size
        except StoreUnavailableError:
            if await self.engine.store.blob_bytes(hash_) is None:  # removed between the two
                raise not_there(hash_) from None
            raise

    def remember(self, hash_: str, size_bytes: int) -> None:
        """A content is there."""
        self._known[hash_] = size_bytes
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    # --- what tasks speak of ----------------------------------------------------------------------------------------

    async def learn(self, hashes: Iterable[str]) -> None:
        """Find out which of these contents are there, before something is recorded that speaks of them."""
        for hash_ in hashes:
            await self.size(hash_)

    async def check(self, text: str) -> None:
        """Raise for an input that speaks of a content that is not there, or of too many of them."""
        hashes = hashes_in(text.encode(errors="surrogatepass"))
        await self.learn(hashes[:ARTIFACTS_PER_MESSAGE_MAX])
        refusal = self.refusal(None, hashes)
        if refusal is not None:
            raise refusal

    def refusal(self, entry: TaskEntry | None, hashes: list[str]) -> LlamaDeployError | None:
        """Why something that speaks of these contents, which were looked up before, cannot be recorded."""
        if len(hashes) > ARTIFACTS_PER_MESSAGE_MAX:
            return LimitExceededError(
                f"{len(hashes)} artifacts are in one message",
                why=f"ARTIFACTS_PER_MESSAGE_MAX is {ARTIFACTS_PER_MESSAGE_MAX}",
                setting="ARTIFACTS_PER_MESSAGE_MAX",
                limit=ARTIFACTS_PER_MESSAGE_MAX,
            )
        for hash_ in hashes:
            if hash_ not in self._known:
                return not_there(hash_)
        used = dict(entry.artifacts) if entry is not None and entry.artifacts else {}
        used.update((hash_, self._known[hash_]) for hash_ in hashes)
        limit = self.engine.settings.artifacts_per_task_bytes_max
        total = sum(used.values())
        if total > limit:
            return LimitExceededError(
                f"the artifacts of the task have {total} bytes",
                why=f"artifacts_per_task_bytes_max is {limit}",
                setting="artifacts_per_task_bytes_max",
                limit=limit,
            )
        return None

    def record(self, entry: TaskEntry, transition: Transition, record: Record) -> bytes:
        """A history entry as stored; the contents that it needs are noted with its task in the same commit."""
        data = encode_record(record)
        if MARK_BYTES in data:
            transition.blob_uses = self._uses(entry, data)
        inline_max = self.engine.settings.payload_inline_bytes_max
        if len(data) > inline_max:
            data, transition.blobs = cut(data, record, entry.definition.input, inline_max)
            transition.blob_uses = [*transition.blob_uses, *transition.blobs]
        return data

    async def history(self, task_id: str, *, after: int = 0, limit: int | None = None) -> list[HistoryRow]:
        """A task's history entries with `seq > after`, whole, however they are stored."""
        store = self.engine.store
        rows = await store.load_history(task_id, after=after, limit=limit)
        return await whole(rows, store.load_blob)

    def _uses(self, entry: TaskEntry, data: bytes) -> list[str]:
        """The contents that a record speaks of and its task has not been noted with."""
        found = [hash_ for hash_ in hashes_in(data) if hash_ in self._known]
        noted = entry.artifacts if entry.artifacts is not None else {}
        new = [hash_ for hash_ in found if hash_ not in noted]
        if new:
            noted.update((hash_, self._known[hash_]) for hash_ in new)
            entry.artifacts = noted
        return new

    def doubt(self, hashes: Iterable[str]) -> None:
        """A commit that spoke of these was refused: have another look whether they are there."""
        again = list(hashes)
        if not again:
            return

        async def look() -> None:
            for hash_ in again:
                if await self.engine.store.blob_bytes(hash_) is None:
                    self._known.pop(hash_, None)

        self.engine.spawn(look())

    async def use_in_stream(self, task_id: str, hashes: Iterable[str]) -> None:
        """Note the contents that events speak of with their task, before the events are recorded."""
        for hash_ in hashes:
            if await self.size(hash_) is None:
                continue
            try:
                await self.engine.store.use_blob(hash_, task_id)
            except CommitConflictError:
                self.doubt([hash_])


def check_hash(hash_: str) -> None:
    """Raise `InvalidRequestError` for what is no hash."""
    if len(hash_) != len(hashlib.sha256().hexdigest()) or set(hash_) - set("0123456789abcdef"):
        raise InvalidRequestError(f"{hash_[:80]!r} is not a hash", why="it is a SHA-256 in 64 small hex digits")


def not_there(hash_: str) -> ArtifactNotFoundError:
    """The refusal of a content that is not there."""
    return ArtifactNotFoundError(
        f"there is no content {hash_}",
        why="it was never stored, or no task needed it and it was removed",
        fix="upload it again, then use it",
        hash=hash_,
    )
