"""Answers that go on until a task has ended: server-sent events, or one JSON value a line.

Every item has a number, so that a reader whose connection broke goes on where it was; an SSE reader does that by
itself with `Last-Event-ID`. Where the items come from is the routes' affair.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llama_deploy.errors import InvalidRequestError
from llama_deploy.runtime.line_log import LineLog

EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""A proxy on the way must neither keep the answer nor wait for the end of it."""

ENDLESS = "llama_deploy.endless"
"""Marks the ASGI scope of an answer that only the end of its task ends; a server that stops breaks it off."""

DIGITS_MAX = 15


class EndlessResponse(StreamingResponse):
    """An answer that ends with a task. One that breaks off earlier does not look as if it were complete."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        scope[ENDLESS] = True
        await super().__call__(scope, receive, send)


def log_response(log: LineLog, *, last: int, follow: bool) -> StreamingResponse:
    """The newest lines of a log as text; with `follow` also those to come, until the log or the server ends."""
    shown, newest = log.last(last), log.newest

    async def lines() -> AsyncIterator[bytes]:
        for line in shown:
            yield line.text.encode("utf-8", "backslashreplace") + b"\n"
        if follow:
            async for line in log.follow(newest):
                yield line.text.encode("utf-8", "backslashreplace") + b"\n"

    return EndlessResponse(lines(), media_type="text/plain; charset=utf-8", headers=HEADERS)


def streaming_type(accept: str) -> str | None:
    """The streaming media type that an `Accept` header names, if it names one."""
    for media in (EVENT_STREAM, NDJSON):
        if media in accept:
            return media
    return None


def number_of(last_event_id: str | None, *, default: int) -> int:
    """The number in a `Last-Event-ID` header. Raises `InvalidRequestError`."""
    if not last_event_id:
        return default
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > DIGITS_MAX:
        raise InvalidRequestError(
            f"Last-Event-ID {last_event_id!r} is not a number", fix="send back an `id` of this stream"
        )
    return int(last_event_id)


def streamed(
    media: str, name: str, items: AsyncIterator[tuple[int, bytes]], state: Callable[[], Awaitable[str]]
) -> StreamingResponse:
    """Numbered items of JSON as an answer that ends with the task; `name` is the SSE event's, `state` the task's."""
    lines = _events(name, items, state) if media == EVENT_STREAM else _lines(items)
    return EndlessResponse(lines, media_type=media, headers=HEADERS)


async def _lines(items: AsyncIterator[tuple[int, bytes]]) -> AsyncIterator[bytes]:
    async for _, item in items:
        yield item + b"\n"


async def _events(
    name: str, items: AsyncIterator[tuple[int, bytes]], state: Callable[[], Awaitable[str]]
) -> AsyncIterator[bytes]:
    """SSE; closes with an `end` event that carries the task's state, so that a reader knows not to come back."""
    async for number, item in items:
        yield b"id: %d\nevent: %s\ndata: %s\n\n" % (number, name.encode(), item)
    yield b'event: end\ndata: {"state":"%s"}\n\n' % (await state()).encode()
