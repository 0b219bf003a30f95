"""The client's rare requests, over HTTP: views, lists, inputs, cancellations.

It turns what the network does into our errors and nothing more; what a path means is in `async_client`. The HTTP
library is imported at the first request: what only submits and waits never pays for it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from llama_deploy.connections.problems import (
    error_from_problem,
    no_answer,
    tls_cause,
    tls_trouble,
    unreachable,
    why_unreachable,
)
from llama_deploy.errors import ConnectionLostError, InvalidRequestError
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.credentials import Credentials
from llama_deploy.runtime.http_client import http_client

if TYPE_CHECKING:
    import ssl

    from httpx2 import ASGITransport, AsyncClient, Response

REQUEST_TIMEOUT_S = 30.0
"""How long one request may take; a long wait for an outcome goes over the connection, never over HTTP."""
DOWNLOAD_TIMEOUT_S = 3_600.0
"""How long a download may be silent: the control plane writes a copy of everything before it sends the first byte."""
IDLE_CONNECTION_S = 2.0
"""Idle connections are dropped after this; servers drop them after 5 s, and a request must not meet that."""

_AS_IT_IS = {"accept-encoding": "identity"}


class HttpRequests:
    """Requests to one base URL, or with `app` straight to an ASGI application in this process."""

    def __init__(
        self,
        base_url: str,
        *,
        app: Any = None,
        trust_environment: bool = True,
        credentials: Credentials | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._base_url = base_url
        self._app = app
        self._credentials = credentials or Credentials()
        self._timeout_s = timeout_s
        self._tls = tls
        self._trust_environment = trust_environment
        self._http: AsyncClient | None = None

    async def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> tuple[int, Any]:
        """Fulfils `Transport.request`."""
        import httpx2

        http = self._http or self._open()
        content = None if json is None else _encoded(json)
        headers = self._credentials.headers()
        if content is not None:
            headers["content-type"] = "application/json"
        attempts = 2 if method == "GET" else 1
        while True:
            attempts -= 1
            failpoint("client.before_request")
            try:
                with self._network_errors(method, path):
                    response = await http.request(method, path, params=params, content=content, headers=headers)
            except ConnectionLostError as error:
                if attempts and isinstance(error.__cause__, httpx2.NetworkError | httpx2.RemoteProtocolError):
                    continue  # the server closed an idle connection just then; reading again is harmless
                raise
            failpoint("client.after_request")
            return response.status_code, _body(response)

    async def download(self, path: str, *, silent_s: float = DOWNLOAD_TIMEOUT_S) -> AsyncIterator[bytes]:
        """Fulfils `Transport.download`; it may be silent for so long."""
        import httpx2

        http = self._http or self._open()
        patient = httpx2.Timeout(REQUEST_TIMEOUT_S, read=None if silent_s == math.inf else silent_s)
        with self._network_errors("GET", path, silent_s=silent_s):
            headers = _AS_IT_IS | self._credentials.headers()
            async with http.stream("GET", path, headers=headers, timeout=patient) as response:
                if response.status_code >= HTTPStatus.BAD_REQUEST:
                    await response.aread()
                    raise error_from_problem(_body(response), status=response.status_code, address=self._base_url)
                async for piece in response.aiter_bytes():
                    yield piece

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | bytes | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Fulfils `Transport.exchange`; what was interrupted is repeated by the caller."""
        http = self._http or self._open()
        failpoint("client.before_request")
        shown = {**(headers or {}), **self._credentials.headers()}
        with self._network_errors(method, path):
            response = await http.request(
                method, path, params=params, headers=shown, content=content, timeout=timeout_s
            )
        failpoint("client.after_request")
        return response.status_code, response.headers, response.content

    @contextmanager
    def _network_errors(self, method: str, path: str, *, silent_s: float | None = None) -> Iterator[None]:
        """What the network does, as the errors of this project; `silent_s` is how long it may say nothing."""
        import httpx2

        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise unreachable(self._base_url, error) from error
        except httpx2.TimeoutException as error:
            raise no_answer(self._base_url, silent_s or self._timeout_s, f"{method} {path}", _known(method)) from error
        except (httpx2.TransportError, OSError) as error:
            if (trouble := tls_cause(error)) is not None:
                raise tls_trouble(self._base_url, trouble) from error
            raise self._lost(method, path, error) from error

    def _open(self) -> AsyncClient:
        from httpx2 import ASGITransport, Limits

        transport: ASGITransport | None = None
        if self._app is not None:
            transport = ASGITransport(app=self._app, raise_app_exceptions=False)
        self._http = http_client(
            base_url=self._base_url,
            transport=transport,
            timeout=self._timeout_s,
            limits=Limits(keepalive_expiry=IDLE_CONNECTION_S),
            verify=self._tls or False,  # without one this is plain HTTP, and making one would take 130 ms
            trust_env=self._trust_environment,
        )
        return self._http

    def _lost(self, method: str, path: str, error: Exception) -> ConnectionLostError:
        known = _known(method)
        return ConnectionLostError(
            f"the connection to the control plane at {self._base_url} was lost during {method} {path}",
            why=f"{why_unreachable(error, self._base_url)}{known}",
            fix="look at the task before you ask again: `llamactl tasks get ID`" if known else "ask again",
            address=self._base_url,
        )

    async def close(self) -> None:
        """Release the connections; a later request opens new ones."""
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()


def _known(method: str) -> str:
    """What is to be said of a request whose answer was not seen."""
    return "" if method == "GET" else "\nIt is not known whether the request was carried out."


def _encoded(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidRequestError("the request cannot be sent", why=str(error)) from error


def _body(response: Response) -> Any:
    try:
        return msgspec.json.decode(response.content) if response.content else None
    except msgspec.DecodeError:
        return None
