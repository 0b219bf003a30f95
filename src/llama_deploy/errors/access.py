"""Refusals of who is not let in, or not let do it (LD25x)."""

from __future__ import annotations

from llama_deploy.errors.base import Category, LlamaDeployError
from llama_deploy.errors.tasks import QueueFullError


class UnauthenticatedError(LlamaDeployError):
    """The control plane asks for a token, and none was sent, or one that it does not know (any more)."""

    code, title, category = "LD250", "not authenticated", Category.UNAUTHORISED


class ForbiddenError(LlamaDeployError):
    """The token is known and does not allow this; `details["scope"]` says which scope does."""

    code, title, category = "LD251", "not allowed", Category.FORBIDDEN


class RateLimitedError(QueueFullError):
    """The token's rate is used up. Nothing was changed; `details["retry_after_s"]` says when to ask again."""

    code, title, category = "LD252", "too many requests", Category.TOO_MANY


class WrongHostError(LlamaDeployError):
    """The request names a host that the control plane is not known by, as an attacker's name for it would be.

    Without tokens, a name that is not this machine's own is refused: a page in a browser may have been given a name
    that leads to loopback (DNS rebinding). List the names that are meant under `hosts` of `access`.
    """

    code, title, category = "LD253", "unknown host name", Category.FORBIDDEN


class CrossSiteError(LlamaDeployError):
    """A page of another site made the request; only pages of origins in `cors-origins` of `access` may."""

    code, title, category = "LD254", "request of another site", Category.FORBIDDEN
