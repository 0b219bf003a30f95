"""The guard before the application: who asks, whether they may, and what is written down of it.

Everything is decided from the head of a request, before a byte of its body is read. Whoever forwards a request to
another control plane of the same deployment hands its `Authorization` on: the same tokens are known there. A server in
front with a token of its own (`Token.speaks_for_others`) says for whom it asks in the header `FOR`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any

from llama_deploy.control_plane.http.access.audit import Audit, Entry
from llama_deploy.control_plane.http.access.places import Places
from llama_deploy.control_plane.http.access.scopes import Rule, ScopeTable
from llama_deploy.control_plane.http.access.tokens import ANYBODY, FOR, Caller, TokenTable
from llama_deploy.control_plane.http.problems import no_route, problem
from llama_deploy.errors import ForbiddenError, LlamaDeployError, ShuttingDownError, UnauthenticatedError
from llama_deploy.types.access import AccessSettings, Scope

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

CALLER = "llama_deploy.caller"
"""Where in a request's scope stands who makes it."""
ACCESS = "llama_deploy.access"
"""Where in a connection's scope stands the `Access` of its server."""

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Of every answer, unless the route sets the header itself."""

POLICY_VIOLATED = 1008
"""The code that a WebSocket is closed with when its token is not valid any more (RFC 6455)."""


class Access:
    """What a server knows of who may do what. `replace` changes it while it runs; what may not go on ends then."""

    def __init__(self, settings: AccessSettings | None = None, *, listens_on: str = "127.0.0.1") -> None:
        self._listens_on = listens_on
        self.tokens = TokenTable()
        self.audit = Audit(None)
        self.connections: dict[_Connection, None] = {}
        self.replace(settings or AccessSettings())

    def replace(self, settings: AccessSettings) -> None:
        """These settings hold from now on: for requests that come, and for connections that there are."""
        self.settings = settings
        self.places = Places(listens_on=self._listens_on, hosts=settings.hosts, origins=settings.cors_origins)
        self.tokens.replace(settings.tokens)
        if settings.audit != self.audit.settings:
            self.audit.close()
            self.audit = Audit(settings.audit)
        for connection in tuple(self.connections):
            token = connection.caller.token
            if self.tokens.asked_for if token is None else not self.tokens.has(token):
                connection.end()

    def close(self) -> None:
        """Write what is still to be written of the audit log."""
        self.audit.close()


@dataclass(frozen=True, slots=True)
class _Asked:
    """The head of a request, read once."""

    method: str
    path: str
    host: str
    origin: str | None
    authorization: list[bytes]
    on_behalf: bytes | None
    peer: str
    rules: list[Rule]
    """What the table of scopes says of it."""

    @classmethod
    def of(cls, scope: Message, table: ScopeTable) -> _Asked:
        host, origin, authorization, on_behalf = "", None, [], None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"authorization":
                authorization.append(value)
            elif name == FOR:
                on_behalf = value
        method = "WS" if scope["type"] == "websocket" else scope["method"]
        client = scope.get("client")
        peer = client[0] if client else ""
        rules = table.rules_of(method, scope["path"])
        return cls(method, scope["path"], host, origin, authorization, on_behalf, peer, rules)


@dataclass(eq=False, slots=True)
class _Connection:
    """A WebSocket that is open, and whose it is."""

    caller: Caller
    task: asyncio.Task[Any]
    revoked: bool = field(default=False)

    def end(self) -> None:
        """Its token is not valid any more. Repeating it does nothing."""
        if not self.revoked:
            self.revoked = True
            self.task.cancel()


def _stopping() -> ShuttingDownError:
    return ShuttingDownError(
        "the server is stopping",
        why="the answer took longer than a stop waits for; it is not known whether the request was carried out",
        fix="look before you ask again; a task_id or an Idempotency-Key makes it safe",
    )


class Guard:
    """ASGI: passes on what may be done, and answers everything else itself."""

    def __init__(
        self, app: App, access: Access, scopes: ScopeTable | None = None, closing: asyncio.Event | None = None
    ) -> None:
        """`closing` is set when the server stops: what is canceled from then on is refused, and not broken off."""
        self._app = app
        self._access = access
        self._scopes = scopes or ScopeTable()
        self._closing = closing

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        asked = _Asked.of(scope, self._scopes)
        if asked.origin is not None and self._access.settings.cors_origins and scope["type"] == "http":
            await self._cors(scope, receive, send)
        else:
            await self._guarded(asked, scope, receive, send)

    @cached_property
    def _cors(self) -> App:
        """Says to browsers which origins may read answers; made when somebody from another origin asks."""
        from starlette.middleware.cors import CORSMiddleware

        access = self._access

        class Cors(CORSMiddleware):
            def is_allowed_origin(self, origin: str) -> bool:
                return origin.lower() in access.settings.cors_origins

        async def guarded(scope: Message, receive: Receive, send: Send) -> None:
            await self._guarded(_Asked.of(scope, self._scopes), scope, receive, send)

        return Cors(
            guarded,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"),
            expose_headers=("Retry-After", "WWW-Authenticate", "Content-Disposition"),
        )

    async def _guarded(self, asked: _Asked, scope: Message, receive: Receive, send: Send) -> None:
        caller = ANYBODY
        try:
            caller = self._admitted(asked)
        except LlamaDeployError as error:
            self._written(asked, caller, HTTPStatus(error.to_problem()["status"]), error)
            answer = problem(error)
            if isinstance(error, UnauthenticatedError | ForbiddenError):
                answer.headers["www-authenticate"] = _challenge(error)
            await answer(scope, receive, _with_headers(send))
            return
        scope[CALLER] = caller
        if (
            not asked.rules and caller.token is not None
        ):  # nothing is reached that no line of the table lets anybody reach
            self._written(asked, caller, HTTPStatus.NOT_FOUND)
            await no_route(asked.path)(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await self._connection(asked, caller, scope, receive, send)
        else:
            await self._request(asked, caller, scope, receive, send)

    def _admitted(self, asked: _Asked) -> Caller:
        """Who asks. Raises what they are refused with."""
        access = self._access
        if not access.tokens.asked_for:
            access.places.check_host(asked.host)  # with tokens a name that leads here is of no use without one
        access.places.check_origin(asked.origin, asked.host, asked.method)
        if asked.rules and all(rule.scope is None for rule in asked.rules):
            return ANYBODY
        caller = access.tokens.caller(asked.authorization).speaking_for(asked.on_behalf)
        for scope in {rule.scope for rule in asked.rules if rule.scope is not None}:
            error = caller.refusal(scope)
            if error is not None:
                raise error
        return caller

    async def _request(self, asked: _Asked, caller: Caller, scope: Message, receive: Receive, send: Send) -> None:
        status: HTTPStatus | None = None

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = HTTPStatus(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, _with_headers(watched))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if status is not None or self._closing is None or not self._closing.is_set() or task is None:
                raise
            task.uncancel()  # the server waits for it no longer, but its client does
            await problem(_stopping())(scope, receive, _with_headers(watched))
        finally:
            self._written(asked, caller, status or HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _connection(self, asked: _Asked, caller: Caller, scope: Message, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(caller, task)
        access = self._access
        access.connections[connection] = None
        scope[ACCESS] = access
        self._written(asked, caller, HTTPStatus.SWITCHING_PROTOCOLS)
        try:
            await self._app(scope, receive, _with_headers(send))
        except asyncio.CancelledError:
            if not connection.revoked or task.uncancel() > 0:
                raise
            access.audit.write(Entry(caller.name, "disconnect", asked.path, asked.peer, "revoked"))
            await send(
                {"type": "websocket.close", "code": POLICY_VIOLATED, "reason": "the token is not valid any more"}
            )
        finally:
            del access.connections[connection]

    def _written(
        self,
        asked: _Asked,
        caller: Caller,
        status: HTTPStatus,
        error: LlamaDeployError | None = None,
    ) -> None:
        """Write it down, where it is of a kind that is written down."""
        audit = self._access.audit
        if not audit.on:
            return
        scopes = {rule.scope for rule in asked.rules}
        refused = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        if not refused and not audit.reads and scopes <= {Scope.READ, None}:
            return
        name = caller.name
        if error is not None:
            name = str(error.details.get("token", "unknown"))
        outcome = f"{status.value}" if error is None else f"{status.value} {error.code}"
        audit.write(Entry(name, asked.method, asked.path, asked.peer, outcome), unknown=name == "unknown")


def _with_headers(send: Send) -> Send:
    """Answers with the headers that every one has."""

    async def sent(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            own = {name.lower() for name, _ in message.get("headers", ())}
            more = [header for header in HEADERS if header[0] not in own]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sent


def _challenge(error: LlamaDeployError) -> str:
    """What a client is to show (RFC 6750)."""
    if isinstance(error, ForbiddenError):
        return f'Bearer realm="llama_deploy", error="insufficient_scope", scope="{error.details["scope"]}"'
    return 'Bearer realm="llama_deploy"'
