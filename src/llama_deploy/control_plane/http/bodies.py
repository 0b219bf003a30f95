"""Reading request bodies: bounded, and strict about JSON.

What the standard library would let pass as JSON (NaN, halves of surrogate pairs) is refused here, and so is what is
nested so deeply that not every reader could read it back. What a body means is in `models.py`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from llama_deploy.control_plane.http import problems
from llama_deploy.errors import InvalidRequestError, LimitExceededError
from llama_deploy.messages.values import NESTING_MAX, nests_too_deeply

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_decode = msgspec.json.Decoder().decode


class BodyLimit:
    """Refuses request bodies above a size before they are read into memory, whether they say their size or not."""

    def __init__(self, app: FastAPI, bytes_max: int, larger: Mapping[str, tuple[int, str]]) -> None:
        self.app = app
        self._bytes_max = bytes_max
        self._larger = larger
        """Routes below which a body may be larger, how large, and by which setting."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        bytes_max, setting = self._bytes_max, "payload_bytes_max"
        for path, more in self._larger.items():
            if scope["path"].startswith(path):
                bytes_max, setting = more
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > bytes_max:
            await problems.problem(_too_large(bytes_max, setting))(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > bytes_max:
                raise problems.Refusal(_too_large(bytes_max, setting))
            return message

        await self.app(scope, counted, send)


def _too_large(bytes_max: int, setting: str) -> LimitExceededError:
    return LimitExceededError(
        f"the request body has more than {bytes_max} bytes",
        fix=f"pass an artifact in the place of large data, or raise {setting}",
        setting=setting,
        limit=bytes_max,
    )


class JSONRequest(Request):
    """A request whose body is JSON as RFC 8259 has it, or refused."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            value = _decode(body)
        except RecursionError:
            raise _too_deep() from None
        except ValueError as error:
            raise problems.Refusal(
                InvalidRequestError(
                    "the body is not JSON",
                    why=_reason(body, error),
                    fix="send one JSON value (RFC 8259), encoded as UTF-8",
                )
            ) from error
        if nests_too_deeply(value, body):
            raise _too_deep()
        return value


class JSONRoute(APIRoute):
    """A route that reads its body through `JSONRequest`."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """FastAPI's place for another class of request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JSONRequest(request.scope, request.receive))

        return handle


def _reason(body: bytes, error: ValueError) -> str:
    """Why a body is not JSON, with the place where that can be said."""
    try:
        json.loads(body)
    except json.JSONDecodeError as found:
        return str(found)
    except ValueError:
        return str(error)
    return f"{error}; NaN, Infinity and halves of surrogate pairs are not JSON"


def _too_deep() -> problems.Refusal:
    return problems.Refusal(
        InvalidRequestError(
            f"the body nests arrays and objects more than {NESTING_MAX} deep",
            fix="send a flatter value, or send it as text",
            limit=NESTING_MAX,
        )
    )
