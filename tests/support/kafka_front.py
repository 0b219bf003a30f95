"""A door before a Kafka server that has none: TLS, then SASL (PLAIN or SCRAM), and behind it whatever there is.

It knows of Kafka's protocol what is said until somebody is let in; from then on it passes bytes on. The server behind
it has to advertise the door's port in the place of its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import secrets
import ssl
import struct
from collections.abc import AsyncIterator, Generator

from tests.support.certificates import Files

SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 17, 18, 36
AUTHENTICATION_FAILED = 58
ITERATIONS = 4096


class Door:
    """Lets in who shows this password for this user, by this mechanism."""

    def __init__(self, target: int, *, mechanism: str, user: str, password: str) -> None:
        self._target = target
        self._mechanism = mechanism
        self._user = user
        self._password = password
        self.let_in = 0
        self.refused = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if not await self._knows(reader, writer):
                self.refused += 1
                writer.close()
                return
            self.let_in += 1
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        writer.close()

    async def _knows(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Speak until it is clear who that is."""
        asked: Generator[bytes, bytes, bool] | None = None
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            request = await reader.readexactly(size)
            key, _, number, name = struct.unpack(">hhih", request[:10])
            body = request[10 + max(0, name) :]
            known: bool | None = None
            if key == API_VERSIONS:
                answer = await self._versions(request)
            elif key == SASL_HANDSHAKE:
                mechanism = self._mechanism.encode()
                answer = struct.pack(">hih", 0, 1, len(mechanism)) + mechanism
            elif key == SASL_AUTHENTICATE:
                if asked is None:
                    asked = self._plain() if self._mechanism == "PLAIN" else self._scram()
                    next(asked)
                known, said = _step(asked, body[4:])
                answer = struct.pack(">hhi", AUTHENTICATION_FAILED if known is False else 0, -1, len(said)) + said
                answer += struct.pack(">q", 0)
            else:
                return False
            frame = struct.pack(">i", number) + answer
            writer.write(struct.pack(">i", len(frame)) + frame)
            await writer.drain()
            if known is not None:
                return known

    async def _versions(self, request: bytes) -> bytes:
        """What the server behind the door speaks, and what the door does."""
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        back.write(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", await there.readexactly(4))
        said = await there.readexactly(size)
        back.close()
        _, error, count = struct.unpack(">ihi", said[:10])
        known = [struct.unpack(">hhh", said[10 + 6 * n : 16 + 6 * n]) for n in range(count)]
        known = [one for one in known if one[0] not in (SASL_HANDSHAKE, SASL_AUTHENTICATE)]
        known += [(SASL_HANDSHAKE, 0, 1), (SASL_AUTHENTICATE, 0, 1)]
        return struct.pack(">hi", error, len(known)) + b"".join(struct.pack(">hhh", *one) for one in known)

    def _plain(self) -> Generator[bytes, bytes, bool]:
        """RFC 4616; for whom the user acts is left out, or is the user."""
        said = yield b""
        acts_for, *known = said.split(b"\0")
        user = self._user.encode()
        return acts_for in (b"", user) and known == [user, self._password.encode()]

    def _scram(self) -> Generator[bytes, bytes, bool]:
        """RFC 5802."""
        digest = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}[self._mechanism]
        salt = secrets.token_bytes(16)
        salted = hashlib.pbkdf2_hmac(digest, self._password.encode(), salt, ITERATIONS)
        first = (yield b"").removeprefix(b"n,,")
        user, nonce = (part.partition(b"=")[2] for part in first.split(b",")[:2])
        challenge = b"r=%s%s,s=%s,i=%d" % (nonce, b"door", base64.b64encode(salt), ITERATIONS)
        last = yield challenge
        without_proof, _, proof = last.rpartition(b",p=")
        said = b",".join([first, challenge, without_proof])
        client_key = hmac.digest(salted, b"Client Key", digest)
        signature = hmac.digest(hashlib.new(digest, client_key).digest(), said, digest)
        wanted = bytes(one ^ other for one, other in zip(client_key, signature, strict=True))
        if user != self._user.encode() or not hmac.compare_digest(base64.b64decode(proof), wanted):
            return False
        yield b"v=" + base64.b64encode(hmac.digest(hmac.digest(salted, b"Server Key", digest), said, digest))
        return True


def _step(asked: Generator[bytes, bytes, bool], said: bytes) -> tuple[bool | None, bytes]:
    """Whether the client is known, where that is clear, and what it is told."""
    try:
        told = asked.send(said)
    except StopIteration as end:
        return bool(end.value), b""
    return (True, told) if told.startswith(b"v=") else (None, told)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def guarded(door: Door, port: int, files: Files) -> AsyncIterator[Door]:
    """The door at a port of this machine, with this certificate, for as long as the block runs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server = await asyncio.start_server(door.serve, "127.0.0.1", port, ssl=context)
    try:
        yield door
    finally:
        server.close()
