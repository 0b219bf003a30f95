"""What carries a client's operations to a control plane and the replies back: the contract, and nothing else.

Two transports fulfil it: one over a WebSocket, one inside the control plane's own process. Neither repeats anything:
what was under way when a connection broke is the business of `llama_deploy.connections.connection`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeAlias

from llama_deploy.messages.frames import ClientOp, ReplyOp

Receive: TypeAlias = Callable[[list[ReplyOp]], None]
"""Takes the replies of one frame, in the order in which they were sent."""
Lost: TypeAlias = Callable[[BaseException | None], None]
"""Told once that a connection is gone, and why if that is known. A `ProtocolError` means: do not try again."""


class Transport(Protocol):
    """One connection at a time to one control plane. Everything is called on one event loop."""

    @property
    def address(self) -> str:
        """Where the control plane is, as shown to people."""
        ...

    @property
    def reconnects(self) -> bool:
        """Whether a lost connection may come back by connecting again."""
        ...

    async def connect(self, receive: Receive, lost: Lost) -> None:
        """Make the connection, in the place of an earlier one, whose functions are not called any more.

        `receive` and `lost` may be called until `close`. Raises `CannotReachError` when nothing answers, another
        `LlamaDeployError` when what answers refuses.
        """
        ...

    def send(self, ops: list[ClientOp]) -> None:
        """Send operations in order; returns at once. After a loss they are dropped silently: `lost` tells it."""
        ...

    async def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> tuple[int, Any]:
        """One request to the HTTP API, independent of the connection: the status and the decoded JSON.

        Raises `CannotReachError` when nothing answers and `ConnectionLostError` when it is not known whether the
        request was carried out. An answer of any status is returned; a body that is not JSON is returned as None.
        """
        ...

    def download(self, path: str) -> AsyncIterator[bytes]:
        """The body of a GET request to the HTTP API, piece by piece, however large it is.

        Raises what the answer tells when it is not the body, and otherwise as `request` does, also when the body ends
        before its announced length. Leaving the iterator early ends the request.
        """
        ...

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Like `request`, with a body that is streamed, and the answer's headers (in small letters) and bytes."""
        ...

    async def close(self) -> None:
        """Drop the connection and everything else that is held, for good. Repeating it is harmless."""
        ...
