"""A download from an ASGI application in this process: piece by piece, where the HTTP library would hold all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import msgspec

from llama_deploy.connections.problems import error_from_problem, unexpected

PIECES_WAITING_MAX = 4


async def download(app: Any, path: str) -> AsyncIterator[bytes]:
    """The body of a GET request, as it is sent. Raises what the answer tells when it is not the body."""
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue(PIECES_WAITING_MAX)
    gone = asyncio.Event()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    work = asyncio.ensure_future(app(_scope(path), receive, sent.put))
    try:
        start = await _next(sent, work)
        if start["status"] >= HTTPStatus.BAD_REQUEST:
            problem = b"".join([piece async for piece in _body(sent, work)])
            raise error_from_problem(msgspec.json.decode(problem), status=start["status"])
        async for piece in _body(sent, work):
            yield piece
    finally:
        gone.set()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _body(sent: asyncio.Queue[dict[str, Any]], work: asyncio.Future[None]) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await _next(sent, work)
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _next(sent: asyncio.Queue[dict[str, Any]], work: asyncio.Future[None]) -> dict[str, Any]:
    """What the application sends next. Raises what it raises, `ProtocolError` when it sends nothing more."""
    waiting = asyncio.ensure_future(sent.get())
    either: list[asyncio.Future[Any]] = [waiting, work]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
    finally:
        waiting.cancel()
    if not sent.empty():
        return sent.get_nowait()
    work.result()
    raise unexpected("an answer without an end")


def _scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(path.partition("?")[0]),
        "raw_path": path.partition("?")[0].encode(),
        "root_path": "",
        "query_string": path.partition("?")[2].encode(),
        "headers": [(b"host", b"in-process")],
        "client": None,
        "server": None,
    }
