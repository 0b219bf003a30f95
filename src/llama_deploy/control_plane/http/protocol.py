"""uvicorn's HTTP protocol with limits on how slowly and how much a peer may send before anything else looks at it.

Without them a peer that sends one byte a minute holds a connection for ever, and one whose head never ends fills the
memory. Bodies have their limit of size in `bodies.py`.
"""

from __future__ import annotations

import asyncio
import ipaddress
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_TIMEOUT_S = 20.0
"""How long a request may take to arrive up to the end of its headers, from the connection or its first byte on."""
HEAD_BYTES_MAX = 65_536
"""Size of a request's line and headers."""
BODY_GRACE_S = 30.0
"""How long a body may arrive at any speed."""
BODY_BYTES_PER_S_MIN = 500.0
"""How fast it has to arrive from then on, on the whole."""
LOOK_S = 5.0
"""How often the speed of a body is looked at."""


CONNECTIONS_PER_ADDRESS_MAX = 10_000
"""Connections from one address, where no setting says otherwise."""


def is_of_this_machine(host: str) -> bool:
    """Whether a peer's address is one of loopback: a server in front, and whoever has the machine anyway."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    per_address_max = CONNECTIONS_PER_ADDRESS_MAX

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._begun = False
        self._asked = False
        self._in_body = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._body_began_at = 0.0
        self._refused_with = HTTPStatus.BAD_REQUEST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_one_too_many():
            self._refused_with = HTTPStatus.TOO_MANY_REQUESTS
            self.send_400_response(f"There are {self.per_address_max} connections from this address already.")
        else:
            self._head_begins()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._in_head and not self._in_body:
            self._head_begins()  # of a further request, unless it is nothing
        super().data_received(data)

    def _is_one_too_many(self) -> bool:
        """Whether its address has as many others as it may; nothing is counted while there are fewer in all."""
        if len(self.connections) <= self.per_address_max or self.client is None:
            return False
        host = self.client[0]
        if is_of_this_machine(host):
            return False
        peers = (getattr(one, "client", None) for one in self.connections)
        same = sum(1 for peer in peers if peer is not None and peer[0] == host)
        return same > self.per_address_max

    # --- the head ---------------------------------------------------------------------------------------------------

    def _head_begins(self) -> None:
        self._in_head, self._begun, self._in_body, self._head_bytes = True, False, False, 0
        self._start_timer(HEAD_TIMEOUT_S, self._head_is_late)

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._head_begins()
        self._begun = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)  # the colon, the space, the end of the line
        super().on_header(name, value)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refused_with = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise ValueError("the head is too large")  # the parser stops, and the answer is `send_400_response`

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_head, self._in_body = False, True
        self._body_bytes, self._body_began_at = 0, self.loop.time()
        self._start_timer(LOOK_S, self._look_at_body)
        super().on_headers_complete()
        self._asked = True

    def _head_is_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        answering = self._asked and not self.cycle.response_complete
        if answering and not self._begun:
            self._in_head = False  # it was nothing, and the answer to what was before is on its way
        elif self._begun and not answering:
            self._refused_with = HTTPStatus.REQUEST_TIMEOUT
            self.send_400_response("The request did not arrive in time.")
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or none that is read to its end, and close."""
        status = self._refused_with
        if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            msg = f"The request line and the headers have more than {HEAD_BYTES_MAX} bytes."
        body = msg.encode("ascii", "replace")
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    # --- the body ---------------------------------------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_timer()
        super().on_message_complete()

    def _look_at_body(self) -> None:
        """Give up a body that arrives too slowly; one that the application does not read is not to blame."""
        self._timer = None
        if self.transport.is_closing() or not self._in_body:
            return
        if self.flow.read_paused:
            self._body_began_at += LOOK_S
        elapsed_s = self.loop.time() - self._body_began_at
        if self._body_bytes < (elapsed_s - BODY_GRACE_S) * BODY_BYTES_PER_S_MIN:
            self.transport.abort()
            return
        self._start_timer(LOOK_S, self._look_at_body)

    def handle_websocket_upgrade(self) -> None:
        self._in_body = False
        self._stop_timer()
        super().handle_websocket_upgrade()

    def _start_timer(self, seconds: float, then: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class LimitedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket; one that is refused with a reason is finished by that, and no error of the application's.

    One that the application has left while its peer did not take what it was sent is cut off.
    """

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    async def run_asgi(self) -> None:
        await super().run_asgi()
        if not self.writable.is_set():
            self.transport.abort()
