"""A webhook request as a value, and its signature by the Standard Webhooks specification (1.0).

The signed text is `<id>.<timestamp>.<body>`; the header `webhook-signature` carries `v1,` and the base64 of its
HMAC-SHA256, once for each secret. Sending is done in `llama_deploy.services.webhook`, checking by receivers in
`llama_deploy.client.webhooks`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from llama_deploy.errors import SettingError

SECRET_PREFIX = "whsec_"  # noqa: S105 - not a secret, but how one begins
SECRET_BYTES = (24, 64)
"""Least and most bytes of a secret, as the specification has it."""


class WebhookCall(msgspec.Struct, frozen=True, kw_only=True):
    """One request that is to be made, the same in every attempt."""

    url: str
    id: str
    """The same in every attempt, so that a receiver recognises what it has had already."""
    body: bytes
    keys: tuple[bytes, ...] = ()
    """What it is signed with; nothing signs a webhook that names no secret."""

    def __repr__(self) -> str:
        return f"WebhookCall(id={self.id!r})"


def parse_secret(text: str) -> tuple[bytes, ...]:
    """The keys of a secret: one, or several with spaces between. Raises `SettingError`, which does not show it."""
    keys = []
    for part in text.split():
        try:
            key = base64.b64decode(part.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not SECRET_BYTES[0] <= len(key) <= SECRET_BYTES[1]:
            raise _unusable()
        keys.append(key)
    if not keys:
        raise _unusable()
    return tuple(keys)


def _unusable() -> SettingError:
    return SettingError(
        "the secret of a webhook cannot be used",
        why=f"it is {SECRET_PREFIX} and base64 of {SECRET_BYTES[0]} to {SECRET_BYTES[1]} bytes",
        fix='echo "whsec_$(openssl rand -base64 32)"   makes one',
    )


def sign(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each key, with spaces between."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def message_id(step_id: str) -> str:
    """The id of the request that a step makes: without the dots that a task id may have, which would be ambiguous."""
    return f"msg_{hashlib.sha256(step_id.encode()).hexdigest()[:32]}"
