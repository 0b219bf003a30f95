"""Errors of connections: to a control plane, to a client, between control planes (LD3xx)."""

from __future__ import annotations

from llama_deploy.errors.base import Category, LlamaDeployError


class CannotReachError(LlamaDeployError):
    """Nothing answers at the control plane's address."""

    code, title, category = "LD301", "cannot reach the control plane", Category.UNREACHABLE


class ConnectionLostError(LlamaDeployError):
    """The connection to the control plane was lost and could not be made again in time."""

    code, title, category = "LD302", "connection lost", Category.UNREACHABLE


class WaitTimeoutError(LlamaDeployError):
    """The caller's waiting time is over. The task goes on; `details["task_id"]` says which."""

    code, title, category = "LD303", "timed out waiting", Category.TIMEOUT


class ProtocolError(LlamaDeployError):
    """The other side speaks another version of the protocol, or not this protocol at all."""

    code, title, category = "LD304", "protocol mismatch", Category.INVALID


class ShuttingDownError(LlamaDeployError):
    """The control plane is stopping and takes no new work; what it acknowledged is kept."""

    code, title, category = "LD305", "shutting down", Category.UNAVAILABLE


class NoAnswerError(ConnectionLostError):
    """The control plane took the connection and did not answer in time: it hangs, was stopped, or has too much to do.

    What was asked for may have been done.
    """

    code, title, category = "LD320", "no answer in time", Category.UNREACHABLE


class NameNotFoundError(CannotReachError):
    """The name in the control plane's address has no address: misspelled, or unknown to this machine's resolver."""

    code, title, category = "LD321", "unknown host", Category.UNREACHABLE


class TLSError(CannotReachError):
    """No trusted, encrypted connection could be made to the control plane; `why` is what TLS says.

    Its certificate is not signed by an authority that is believed here, has expired or has another name; or one side
    does not speak TLS; or the control plane asks for a certificate of the client.
    """

    code, title, category = "LD322", "no trusted connection", Category.UNREACHABLE


class NoLeaderError(LlamaDeployError):
    """No control plane leads the session at the moment: a takeover is under way. Nothing was changed."""

    code, title, category = "LD330", "no leader", Category.UNAVAILABLE


class ForwardingError(LlamaDeployError):
    """The control plane that leads the session was asked, and went away before it answered.

    Whether it has carried the request out is not known.
    """

    code, title, category = "LD331", "the leader went away", Category.UNREACHABLE


class PeerRefusedError(LlamaDeployError):
    """The control plane that leads the session does not let in the one that was asked, or is not believed by it.

    A token is missing or weak, or a certificate. Nothing was changed.
    """

    code, title, category = "LD332", "control planes refuse each other", Category.UNAVAILABLE


class PlaneNotAnsweringError(LlamaDeployError):
    """The control plane that alone was asked about does not answer. Nothing was changed."""

    code, title, category = "LD333", "control plane does not answer", Category.UNAVAILABLE
