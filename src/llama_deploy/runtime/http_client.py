"""The client for HTTP that everything here asks with: `httpx2`, whose errors are all its own."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from httpx2 import AsyncClient


def http_client(**options: Any) -> AsyncClient:
    """An `httpx2.AsyncClient` with these options.

    A request raises `httpx2.ConnectError` where its connection cannot be made, also where it is reset as it is made
    (the library below asks its socket for the peer when the socket is gone already, and lets the `AttributeError` out),
    and where the client was closed meanwhile.
    """
    return _client_class()(**options)


@cache
def _client_class() -> type[AsyncClient]:
    import httpx2  # it takes a while

    class Client(httpx2.AsyncClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            if self.is_closed:
                raise httpx2.ConnectError("the client was closed", request=request)
            try:
                return await super().send(request, **options)
            except AttributeError as error:
                if error.name != "getpeername":
                    raise
                raise httpx2.ConnectError("connection reset", request=request) from error

    return Client
