"""From what goes wrong on the way to the error that the caller gets.

A problem+json document becomes the error class that raised it on the other side; an address where nothing answers
becomes an error that says what to do. Nothing here decides whether to try again; the connection does, by category.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

import msgspec

from llama_deploy.errors import (
    HTTP_STATUS,
    CannotReachError,
    Category,
    ConnectionLostError,
    LlamaDeployError,
    ProtocolError,
)
from llama_deploy.messages.problems import from_problem

TRANSIENT: frozenset[Category] = frozenset(
    {Category.UNREACHABLE, Category.UNAVAILABLE, Category.TIMEOUT, Category.TOO_MANY}
)
"""Refusals of a *connection* that a later attempt may not meet."""

_GATEWAY_STATUSES = frozenset({502, 503, 504})


def error_from_problem(problem: object, *, status: int, address: str = "") -> LlamaDeployError:
    """The error that a problem+json document describes, as the class that its `code` names.

    A code of a later version becomes the root class and stands in `details["remote_code"]`. A document that is no
    problem of ours becomes `CannotReachError` for the statuses of a gateway (502, 503, 504), else `ProtocolError`.
    """
    if not isinstance(problem, Mapping) or not isinstance(problem.get("code"), str):
        return _foreign(status, address)
    return from_problem(problem)


def error_from_refusal(problem: bytes) -> LlamaDeployError:
    """The error in a `Refused` operation."""
    try:
        decoded = msgspec.json.decode(problem)
    except msgspec.DecodeError:
        decoded = None
    return error_from_problem(decoded, status=HTTP_STATUS[Category.INTERNAL])


def _foreign(status: int, address: str) -> LlamaDeployError:
    if status in _GATEWAY_STATUSES:
        return cannot_reach(address, f"A server on the way answers for it with HTTP {status}.")
    return ProtocolError(
        f"what answers{f' at {address}' if address else ''} is not a control plane of this version",
        why=f"It answered with HTTP {status} and without an error of ours.",
        fix="check the address: `llamactl status` shows which one is used, `-s`, `--control-plane` or `url=` sets it",
        status=status,
    )


def cannot_reach(address: str, why: str) -> CannotReachError:
    """Nothing answers at `address`; `why` is a sentence."""
    return CannotReachError(
        f"cannot reach the control plane at {address}",
        why=why,
        fix="llamactl dev               start everything on this machine\n"
        "llamactl -s URL status     or use a running control plane; it said its URL when it started",
        address=address,
    )


def why_unreachable(error: BaseException) -> str:
    """The sentence for an error of the network: refused, unknown name, too slow, or its own words."""
    seen: BaseException | None = error
    while seen is not None:  # HTTP clients wrap the socket's error
        if isinstance(seen, ConnectionRefusedError):
            return "Nothing is listening there (connection refused)."
        if isinstance(seen, TimeoutError):
            return "It does not answer in time."
        seen = seen.__cause__ or seen.__context__
    text = str(error)
    if f"[Errno {errno.ECONNREFUSED}]" in text:  # asyncio joins the errors of several addresses into one text
        return "Nothing is listening there (connection refused)."
    return text or type(error).__name__


def connection_lost(address: str, why: str, *, after_s: float) -> ConnectionLostError:
    """The connection to `address` is gone and `after_s` seconds of trying did not bring it back."""
    return ConnectionLostError(
        f"the connection to the control plane at {address} was lost and could not be made again in {after_s:g} s",
        why=why,
        fix="llamactl -s URL status     see whether it runs; nothing that it accepted is lost",
        address=address,
    )


def unexpected(operation: str, address: str = "") -> ProtocolError:
    """The other side sent something that has no meaning here."""
    return ProtocolError(
        f"the control plane{f' at {address}' if address else ''} sent something unexpected: {operation}",
        why="It is of another version, or the connection leads elsewhere.",
        fix="use the same version of this package on both sides",
    )
