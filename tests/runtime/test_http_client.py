"""The client for HTTP: what the library below lets out is one of its own errors here."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from llama_deploy.runtime.http_client import http_client


class Gone(httpx2.AsyncBaseTransport):
    """A socket that is gone when it is asked for its peer."""

    socket: Any = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/ours":
            return self.socket.ours  # type: ignore[no-any-return]
        return self.socket.getpeername()  # type: ignore[no-any-return]


async def test_a_connection_that_is_reset_as_it_is_made_cannot_be_made() -> None:
    async with http_client(transport=Gone()) as client:
        with pytest.raises(httpx2.ConnectError, match="connection reset"):
            await client.get("http://there/")
        with pytest.raises(httpx2.ConnectError, match="connection reset"):
            async with client.stream("GET", "http://there/"):
                pass
        with pytest.raises(AttributeError):  # a mistake stays one
            await client.get("http://there/ours")


async def test_a_request_that_begins_when_the_client_was_closed_is_not_sent() -> None:
    client = http_client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200)))
    assert (await client.get("http://there/")).status_code == 200
    request = client.send(client.build_request("GET", "http://there/"))
    await client.aclose()
    with pytest.raises(httpx2.ConnectError, match="closed"):
        await request
