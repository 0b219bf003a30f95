"""What a service's process and its worker processes say to each other: msgpack arrays over a pair of sockets.

Payloads in them are JSON that was encoded where it arose; nothing is pickled, so a worker can say nothing that its
parent would run.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec

_SIZE = struct.Struct(">I")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


class Start(msgspec.Struct, array_like=True):
    """One attempt, as a worker is given it."""

    step_id: str
    attempt: int
    task_id: str
    session_id: str
    service: str
    action: str
    data: bytes
    inputs: list[bytes]
    snapshot: bytes | None
    run_timeout_s: float
    remembered: dict[str, bytes]
    last_heartbeat: bytes | None
    keeps_memory: bool = False
    memory: bytes | None = None


def write(writer: asyncio.StreamWriter, *message: Any) -> None:
    """Say something; the other side gets it whole, or nothing more at all."""
    data = _encode(list(message))
    writer.write(_SIZE.pack(len(data)) + data)


async def read(reader: asyncio.StreamReader) -> list[Any]:
    """The next thing that the other side says. Raises `EOFError` when it has gone."""
    try:
        (size,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
        return _decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError from error
