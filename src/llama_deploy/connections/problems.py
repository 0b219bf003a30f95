"""From what goes wrong on the way to the error that the caller gets.

A problem+json document becomes the error class that raised it on the other side; an address where nothing answers
becomes an error that says what to do. Nothing here decides whether to try again; the connection does, by category.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from llama_deploy.errors import (
    HTTP_STATUS,
    CannotReachError,
    Category,
    ConnectionLostError,
    LlamaDeployError,
    NameNotFoundError,
    NoAnswerError,
    ProtocolError,
    TLSError,
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


def unreachable(address: str, error: BaseException) -> CannotReachError:
    """What an error of the network on the way to `address` is told as."""
    cause = _cause(error, socket.gaierror)
    if cause is not None:
        return NameNotFoundError(
            f"cannot reach the control plane at {address}: its name has no address",
            why=f"{cause.strerror or cause}.",
            fix="check the spelling of the name, and the network: `-s`, `url=` or a profile says the address",
            address=address,
        )
    trouble = tls_cause(error)
    return (
        tls_trouble(address, trouble) if trouble is not None else cannot_reach(address, why_unreachable(error, address))
    )


def tls_cause(error: BaseException) -> ssl.SSLError | None:
    """The trouble with TLS behind an error, if that is what it is."""
    return _cause(error, ssl.SSLError)


def tls_trouble(address: str, error: ssl.SSLError) -> TLSError:
    """What TLS says, and what is to be done about it."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"Its certificate is not believed: {error.verify_message}."
        fix = "llamactl --ca-file FILE …     believe the authority that signed it (or LLAMA_DEPLOY_CA_FILE)"
    elif "WRONG_VERSION_NUMBER" in reason or "HTTP_REQUEST" in reason:
        why = "What answers there does not speak TLS."
        fix = "use http:// in the address, or another port"
    elif any(said in reason for said in ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "UNKNOWN_CA")):
        why = f"It asks for a certificate of yours, or does not take the one that was shown ({reason})."
        fix = "LLAMA_DEPLOY_CLIENT_CERTIFICATE_FILE, LLAMA_DEPLOY_CLIENT_KEY_FILE     name yours"
    else:
        why = f"TLS says: {reason or error}."
        fix = "llamactl doctor     look for the cause"
    return TLSError(f"no trusted connection to the control plane at {address}", why=why, fix=fix, address=address)


def no_answer(address: str, seconds: float, asked: str, known: str) -> NoAnswerError:
    """Nothing came back in time."""
    return NoAnswerError(
        f"the control plane at {address} took the connection and has not answered {asked} in {seconds:g} s",
        why=f"It hangs, was stopped, or has too much to do.{known}",
        fix="llamactl doctor            look for the cause\nllamactl -t SECONDS …      wait longer",
        address=address,
    )


_Error = TypeVar("_Error", bound=BaseException)


def _cause(error: BaseException, kind: type[_Error]) -> _Error | None:
    """The first error of a kind among the causes; HTTP clients wrap the socket's."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kind):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def why_unreachable(error: BaseException, address: str = "") -> str:
    """The sentence for an error of the network: refused, unknown name, too slow, or its own words.

    A server that refuses a client's certificate often says nothing at all: asyncio ends the connection without TLS's
    own word for it.
    """
    nothing = _cause(error, EOFError) is not None or "without sending a response" in str(error)
    if nothing and address.startswith("https:"):
        return (
            "It ended the connection before it answered, as a server does that asks clients for a certificate and is "
            "shown none that it knows (LLAMA_DEPLOY_CLIENT_CERTIFICATE_FILE, LLAMA_DEPLOY_CLIENT_KEY_FILE)."
        )
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
