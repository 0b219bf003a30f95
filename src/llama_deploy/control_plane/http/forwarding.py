"""Any control plane answers any request: what is about a session that another one leads is passed on to that one.

It stands before the routes and knows none of them. The answer goes back as it comes, errors too; a client that leaves
ends the request there. While nobody leads the session it waits; what was surely not carried out is asked again of
whoever leads it then. One pass is all: who is asked on behalf of another does not pass on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from llama_deploy.connections.problems import tls_cause, tls_trouble
from llama_deploy.control_plane.http import problems
from llama_deploy.control_plane.http.bodies import Message, Receive, Send
from llama_deploy.control_plane.http.lines import ENDLESS
from llama_deploy.control_plane.http.subjects import Asked, Subjects, may_repeat
from llama_deploy.control_plane.leadership import Member
from llama_deploy.control_plane.peers import HOPS, HOPS_MAX
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.relays import untrusted
from llama_deploy.control_plane.routing import AGAIN_S, Search
from llama_deploy.errors import ForwardingError, LlamaDeployError, ShuttingDownError
from llama_deploy.runtime import failpoint

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
App = Callable[[Message, Receive, Send], Awaitable[None]]

CLOSING_S = 1.0
"""How long another control plane may still answer when this one's server stops."""

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
"""Headers of one connection (RFC 9110), which a request or an answer does not take along to the next."""
_NOT_PASSED_ON = _HOP_BY_HOP | {b"host", b"origin", b"content-length", b"expect", HOPS.encode()}
"""Hosts and origins are checked where a client connects."""


class _Elsewhere(Exception):  # noqa: N818 - no error: it is asked again
    """Whoever was asked does not lead the session, or surely was not reached."""


class _Departed(Exception):  # noqa: N818 - no error of ours
    """The store says that a control plane is not there any more, and its connection has not said so."""


class _Gone(Exception):  # noqa: N818 - no error: there is nobody to tell it to
    """Nobody listens to the answer any more, or nothing more of it will come."""


class Forwarding:
    """ASGI, before the application of one control plane. `closing` is set when its server stops."""

    def __init__(self, app: App, plane: ControlPlane, closing: asyncio.Event) -> None:
        self.app = app
        self._plane = plane
        self._closing = closing
        self._subjects = Subjects(plane.routing)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._closing)
        try:
            session_id = await self._subjects.session_of(exchange.asked)
            if session_id is None:
                await self.app(scope, exchange.receive_again(), send)
            elif exchange.hops < HOPS_MAX:
                await self._find(exchange, session_id)
            elif self._plane.routing.leads(session_id):
                await self.app(scope, exchange.receive_again(), send)
            else:
                raise self._plane.routing.not_led(session_id)
        except problems.Refusal as refusal:
            await problems.problem(refusal.error)(scope, receive, send)
        except LlamaDeployError as error:
            if exchange.begun:
                raise
            await problems.problem(error)(scope, receive, send)
        except _Gone:
            return  # an answer that has begun breaks off, and does not look as if it were complete

    async def _find(self, exchange: _Exchange, session_id: str) -> None:
        """Have a request answered by whoever leads the session."""
        routing = self._plane.routing
        search = Search(routing, session_id, patience_s=routing.patience_s)
        await exchange.read()
        while True:
            leads = routing.leads(search.session_id)
            leader = None if leads else await exchange.while_wanted(search.next())
            try:
                if leader is None:
                    await self._answer_here(exchange)
                else:
                    await self._pass_on(exchange, leader.member)
            except _Elsewhere:
                if leader is None:
                    await routing.changed(AGAIN_S)
                search.session_id = await self._subjects.session_of(exchange.asked) or session_id
            else:
                return

    async def _answer_here(self, exchange: _Exchange) -> None:
        """Have our own routes answer, unless they find that the session is not ours (any more)."""
        moved = False

        async def send(message: Message) -> None:
            nonlocal moved
            if message["type"] == "http.response.start" and is_elsewhere(message["headers"]):
                moved = True
            if not moved:
                exchange.begun = True
                await exchange.send(message)

        await self.app(exchange.scope, exchange.receive_again(), send)
        if moved:
            raise _Elsewhere

    async def _pass_on(self, exchange: _Exchange, member: Member) -> None:
        """Ask another control plane, and hand its answer back as it comes."""
        import httpx2

        self._plane.peers.passed_on += 1
        async with AsyncExitStack() as opened:
            response = await self._ask(exchange, member, opened)
            if is_elsewhere(response.headers.raw):
                raise _Elsewhere
            failpoint("forwarding.after_request")
            try:
                await exchange.while_wanted(self._unless_gone(member, exchange.hand_back(response)))
            except (httpx2.TransportError, OSError, _Departed) as error:
                raise _Gone from error

    async def _ask(self, exchange: _Exchange, member: Member, opened: AsyncExitStack) -> httpx2.Response:
        """The answer of another control plane up to its headers; what is opened for it is noted where it is opened."""
        import httpx2

        request = exchange.request_to(member.url)
        failpoint("forwarding.before_request")

        async def ask() -> httpx2.Response:
            response = await self._plane.peers.http(member.url).send(request, stream=True)
            opened.push_async_callback(response.aclose)  # here: whoever waits for it may be gone by now
            return response

        try:
            return await exchange.while_wanted(self._unless_gone(member, ask()))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            if (trouble := tls_cause(error)) is not None:
                raise untrusted(member.url, tls_trouble(member.url, trouble)) from error
            raise _Elsewhere from error
        except (httpx2.TransportError, OSError, _Departed) as error:
            if may_repeat(exchange.asked.method, exchange.asked.path):
                raise _Elsewhere from error
            raise ForwardingError(
                f"the control plane at {member.url} was asked, and went away before it answered",
                why="It leads the session. It is not known whether the request was carried out.",
                fix="look before you ask again; a task_id or an Idempotency-Key makes it safe",
            ) from error

    async def _unless_gone(self, member: Member, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something with another control plane. Raises `_Departed` when that is not among the living any more."""
        return await _first(work, [(self._plane.routing.gone(member), _Departed)])


class _Exchange:
    """One request and its answer; the request's body is kept, for whoever is asked next."""

    def __init__(self, scope: Message, receive: Receive, send: Send, closing: asyncio.Event) -> None:
        self.scope = scope
        self.send = send
        self.begun = False
        """Whether a part of the answer has been sent."""
        self._receive = receive
        self._closing = closing
        self._body: bytes | None = None
        self._ends_at: float | None = None
        """When it is answered at the latest, by the loop's clock: this server stops, whoever is asked how often."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        hops = headers.get(HOPS.encode(), b"0")
        self.hops = int(hops) if hops.isdigit() and len(hops) == 1 else 0
        """How often the request was passed on before it came here."""
        self.asked = Asked(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"],
            headers=headers,
            body=self.read,
            replace=self._replace,
        )

    async def read(self) -> bytes:
        """The body, which is kept."""
        if self._body is None:
            parts = []
            more = True
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
            self._body = b"".join(parts)
        return self._body

    def _replace(self, body: bytes) -> None:
        self._body = body
        if b"content-type" not in self.asked.headers:  # there was no body
            self.scope["headers"] = [*self.scope["headers"], (b"content-type", problems.JSON_TYPE.encode())]

    def receive_again(self) -> Receive:
        """What a route receives: the body, also where it was read before."""
        if self._body is None:
            return self._receive
        body = [self._body]

        async def receive() -> Message:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            return await self._receive()

        return receive

    def request_to(self, url: str) -> httpx2.Request:
        """The same request, to another control plane; its body has been read."""
        import httpx2

        assert self._body is not None
        path = self.scope.get("raw_path") or self.scope["path"].encode()
        query = self.scope["query_string"]
        base = httpx2.URL(url)
        target = base.copy_with(raw_path=base.raw_path.rstrip(b"/") + path + (b"?" + query if query else b""))
        headers = [(name, value) for name, value in self.scope["headers"] if name.lower() not in _NOT_PASSED_ON]
        headers.append((HOPS.encode(), b"%d" % (self.hops + 1)))
        return httpx2.Request(self.scope["method"], target, headers=headers, content=self._body)

    async def hand_back(self, response: httpx2.Response) -> None:
        """The answer, piece by piece as it arrives."""
        headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in _HOP_BY_HOP]
        if all(name != b"content-length" for name, _ in headers):
            self.scope[ENDLESS] = True
        self.begun = True
        await self.send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for piece in response.aiter_raw():
            await self.send({"type": "http.response.body", "body": piece, "more_body": True})
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def while_wanted(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something for as long as somebody waits for the answer, and this server does not stop."""
        return await _first(work, [(self._left(), _Gone), (self._stops(), _stopping)])

    async def _left(self) -> None:
        """Returns when the client has closed its connection; its body has been read already."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _stops(self) -> None:
        await self._closing.wait()
        now = asyncio.get_running_loop().time()
        if self._ends_at is None:
            self._ends_at = now + CLOSING_S
        await asyncio.sleep(self._ends_at - now)


def _stopping() -> Exception:
    return ShuttingDownError(
        "the control plane is stopping",
        why="another one was asked; it is not known whether it has carried the request out",
        fix="look before you ask again; a task_id or an Idempotency-Key makes it safe",
    )


async def _first(
    work: Coroutine[Any, Any, T], reasons: Iterable[tuple[Coroutine[Any, Any, None], Callable[[], Exception]]]
) -> T:
    """What `work` comes to, unless one of the reasons to give it up comes first: then the error of that reason."""
    working = asyncio.ensure_future(work)
    waiting = {asyncio.ensure_future(reason): error for reason, error in reasons}
    every: list[asyncio.Future[Any]] = [working, *waiting]
    try:
        await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        error = next(error for reason, error in waiting.items() if reason.done())
        raise error()
    finally:
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)


def is_elsewhere(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether an answer says that the session is led elsewhere, so that nothing was changed."""
    return any(name.lower() == problems.ELSEWHERE for name, _ in headers)
