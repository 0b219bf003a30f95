"""Large records: what is big in a history entry is stored once under its hash, and the entry refers to it.

A 3 MB input stands in the definition of its task, in the message to the service, and perhaps in the result. Here the
encoded entry is cut where the same bytes are bound to come again: around the input, around the text of the result,
around messages. It works on the bytes of an entry and knows none of its fields but those, so whatever a later version
puts into an entry is covered; joining the pieces gives the same bytes again. An entry of usual size is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from llama_deploy.control_plane.records import Record
from llama_deploy.state_stores.base import HistoryRow

_BEGINNING = b'{"parts":['
"""How an entry begins that was cut; one that was not begins with its state."""


class _Reference(msgspec.Struct):
    """Bytes that stand elsewhere."""

    hash: str
    bytes: int


class _Cut(msgspec.Struct):
    """An entry that was cut: its text, and what belongs in between."""

    parts: list[str | _Reference]


_encode = msgspec.json.Encoder().encode
_decode_cut = msgspec.json.Decoder(_Cut).decode


class _Text(msgspec.Struct):
    """The text of a `TaskResult`."""

    result: str = ""


_decode_text = msgspec.json.Decoder(_Text).decode


def cut(data: bytes, record: Record, input_text: str, inline_max: int) -> tuple[bytes, dict[str, bytes]]:
    """An encoded entry as it is stored, and the contents that it refers to, by hash.

    Nothing above `inline_max` bytes stays in the entry. `input_text` is the input of its task.
    """
    pieces = [data]
    for boundary in _boundaries(record, input_text, inline_max):
        pieces = [part for piece in pieces for part in _around(piece, boundary)]
    contents: dict[str, bytes] = {}
    parts: list[str | _Reference] = []
    for piece in pieces:
        if len(piece) > inline_max:
            hash_ = hashlib.sha256(piece).hexdigest()
            contents[hash_] = piece
            parts.append(_Reference(hash_, len(piece)))
        elif piece:
            parts.append(piece.decode())
    return _encode(_Cut(parts)), contents


def _boundaries(record: Record, input_text: str, inline_max: int) -> Iterable[bytes]:
    """Large bytes of an entry that may come more than once, in it or in another one; the smallest of them first."""
    if len(input_text) > inline_max:
        yield _encode(input_text)
    result = bytes(record.result)
    if len(result) > inline_max:
        text = _decode_text(result).result
        if len(text) > inline_max and text != input_text:
            yield _encode(text)
    for message in record.messages:
        if memoryview(message.data).nbytes > inline_max:
            yield bytes(message.data)
    if len(result) > inline_max:
        yield result


def _around(piece: bytes, boundary: bytes) -> list[bytes]:
    """A piece cut before and after each place where the boundary stands in it."""
    if len(piece) <= len(boundary) or boundary not in piece:
        return [piece]
    found = [part for between in piece.split(boundary) for part in (between, boundary)]
    return [part for part in found[:-1] if part]


async def whole(rows: Sequence[HistoryRow], load: Callable[[str], Awaitable[bytes]]) -> list[HistoryRow]:
    """History rows as they were before they were cut; `load` reads a content by its hash."""
    found = []
    for row in rows:
        if not row.data.startswith(_BEGINNING):
            found.append(row)
            continue
        pieces = [
            part.encode() if isinstance(part, str) else await load(part.hash) for part in _decode_cut(row.data).parts
        ]
        found.append(msgspec.structs.replace(row, data=b"".join(pieces)))
    return found
