"""A real HTTP server that receives webhooks, and answers, hangs, breaks off or redirects as a test says.

It knows nothing of the code under test: the requests are read from the socket, and signatures are checked here with
nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

REASONS = {200: "OK", 204: "No Content", 301: "Moved", 400: "Bad Request", 410: "Gone", 429: "Too Many", 503: "Busy"}


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def signed_by(self, secret: str) -> bool:
        """Whether one of the signatures is that of a secret, by the text of the specification."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        wanted = "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        return wanted in self.headers.get("webhook-signature", "").split(" ")


class Receiver:
    """Answers with what `answers` says, one after the other; then with 204."""

    def __init__(self) -> None:
        self.answers: list[int | str | tuple[int, dict[str, str]]] = []
        """A status; a status with headers; `hang`: no answer; `break`: the connection is closed without one."""
        self.received: list[Received] = []
        self.waiting = 0
        self.most_waiting = 0
        self.release = asyncio.Event()
        self.url = ""
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def answer_to(self, request: Received) -> int | str | tuple[int, dict[str, str]]:
        """What a request is answered with."""
        self.received.append(request)
        return self.answers.pop(0) if self.answers else 204

    async def serve(self, host: str = "127.0.0.1", port: int = 0) -> asyncio.Server:
        """Listen from now on, until the server is closed."""
        server = await asyncio.start_server(self._serve, host, port)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"http://{host}:{self.port}/hook"
        return server

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        answer = self.answer_to(Received(method, path, headers, body))
        if answer == "break":
            return False
        if answer == "hang":
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
            await self.release.wait()
            self.waiting -= 1
            answer = 204
        status, more = answer if isinstance(answer, tuple) else (int(answer), {})
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", "content-length: 0"]
        lines += [f"{name}: {value}" for name, value in more.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver that listens for as long as the block runs."""
    receiver = Receiver()
    server = await receiver.serve(port=port)
    try:
        yield receiver
    finally:
        receiver.release.set()
        server.close()
