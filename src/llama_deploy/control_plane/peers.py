"""The ways from one control plane to the others of its store: a pool for requests, and one kept connection to each.

Whoever asks on behalf of a client hands the client's own credentials on. What a control plane asks by itself, and the
connection that carries the operations of many clients, bears the control plane's own, from its environment
(`LLAMA_DEPLOY_TOKEN`, ...): this is the one place where they are added.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from llama_deploy.connections.connection import Connection
from llama_deploy.connections.problems import (
    error_from_problem,
    tls_cause,
    tls_trouble,
    unexpected,
    why_unreachable,
)
from llama_deploy.connections.websocket import WebSocketTransport
from llama_deploy.control_plane.leadership import Member
from llama_deploy.errors import PlaneNotAnsweringError, ShuttingDownError
from llama_deploy.runtime.credentials import Credentials
from llama_deploy.runtime.http_client import http_client

if TYPE_CHECKING:
    from httpx2 import AsyncClient

HOPS = "llama-deploy-hops"
"""The header of what was passed on, and how often: a control plane that does not lead the session refuses it then."""
FRESH = "llama-deploy-fresh"
"""The header of a request to read first what control planes have in common: somebody has changed it."""
HOPS_MAX = 1
"""The one that is asked passes on to the one that leads, and that one to nobody."""
CONNECT_TIMEOUT_S = 3.0
"""How long making a connection to another control plane may take."""
IDLE_CONNECTIONS_MAX = 64
IDLE_CONNECTION_S = 30.0
"""Idle connections are closed after so long: before the other side does it."""


class Peers:
    """The connections of one control plane to others, made when they are needed."""

    def __init__(self) -> None:
        self._credentials = Credentials().with_environment()
        self.passed_on = 0
        """Requests that others were asked for."""
        self._http: dict[str, AsyncClient] = {}
        self._connections: dict[str, Connection] = {}
        """By the name of each in the store."""
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def http(self, url: str) -> AsyncClient:
        """For requests to the control plane at `url`; it adds nothing of its own and follows nothing.

        Raises `ShuttingDownError` once everything was released.
        """
        import httpx2

        if self._closed:
            raise ShuttingDownError("the control plane is stopping", fix="ask again once it has restarted")

        scheme = url.partition(":")[0]
        if scheme not in self._http:
            self._http[scheme] = http_client(
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
                limits=httpx2.Limits(
                    max_connections=None,
                    max_keepalive_connections=IDLE_CONNECTIONS_MAX,
                    keepalive_expiry=IDLE_CONNECTION_S,
                ),
                trust_env=False,
                verify=self._credentials.ssl_context() if scheme == "https" else False,  # it takes time
            )
        return self._http[scheme]

    async def ask(
        self,
        url: str,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        credentials: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """One request to the control plane at `url`, and what it answers; without `credentials` with its own.

        Raises what that one refuses with, and `PlaneNotAnsweringError` where it was not reached, went away, or took
        longer: then it is not known whether it was done. `TLSError` where one does not believe the other.
        """
        import httpx2

        given = {HOPS: "1", **(credentials or self._credentials.headers()), **(headers or {})}
        content = None if body is None else msgspec.json.encode(body)
        if content is not None:
            given["content-type"] = "application/json"
        self.passed_on += 1
        try:
            async with asyncio.timeout(timeout_s):
                response = await self.http(url).request(
                    method, url.rstrip("/") + path, content=content, headers=given, params=params
                )
        except (httpx2.TransportError, OSError) as error:
            if (trouble := tls_cause(error)) is not None:
                raise tls_trouble(url, trouble) from error
            raise PlaneNotAnsweringError(
                f"the control plane at {url} does not answer", why=why_unreachable(error), fix="ask again in a moment"
            ) from error
        try:
            answer = msgspec.json.decode(response.content) if response.content else None
        except msgspec.DecodeError as error:
            raise unexpected("no JSON", url) from error
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            raise error_from_problem(answer, status=response.status_code, address=url)
        return answer

    def connection(self, member: Member) -> Connection:
        """The connection to another control plane. What is open on it fails when it is lost.

        One that has begun again at the same URL is another one: what was asked of the one before, no end of whose
        connection may ever have been heard of, is not waited for.
        """
        connection = self._connections.get(member.owner)
        if connection is None:
            transport = WebSocketTransport(member.url, credentials=self._credentials, passing_on=True)
            connection = Connection(transport, reconnect_timeout_s=0.0, wait_when_full=False)
            self._connections[member.owner] = connection
        return connection

    def keep_only(self, owners: set[str]) -> None:
        """Let go of the connections to those that are not among the living any more; what is open on them fails."""
        for owner in [owner for owner in self._connections if owner not in owners]:
            task = asyncio.ensure_future(self._connections.pop(owner).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Release everything. Repeating it is harmless."""
        self._closed = True
        self.keep_only(set())
        await asyncio.gather(*self._closing, return_exceptions=True)
        for http in self._http.values():
            await http.aclose()
        self._http.clear()
