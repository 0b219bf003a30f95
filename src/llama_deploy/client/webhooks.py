"""For whoever receives webhooks: is the request from our control plane, and is it new?

It needs no connection and nothing else of the client; a receiver may as well use any Standard Webhooks library.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from llama_deploy.errors import WebhookSignatureError
from llama_deploy.messages.webhooks import parse_secret, sign

TOLERANCE_S = 300.0
"""How far the time of a request may be from now, in seconds, either way."""


def verify(
    headers: Mapping[str, str],
    body: bytes | str,
    secret: str,
    *,
    tolerance_s: float = TOLERANCE_S,
    now: float | None = None,
) -> dict[str, Any]:
    """The event of a webhook request, once it is known to be genuine.

    `headers` are the request's, in any spelling of their names; `body` its body as it came, byte for byte; `secret`
    what the control plane signs with, or several with spaces between. Raises `WebhookSignatureError` for a request
    that is not signed with it, is older or newer than `tolerance_s` seconds, or was changed on its way.

    The same event may come more than once: `event["id"]` is then the same, so keep the ids of those that were seen.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if not given.get(name)]
    if missing:
        raise WebhookSignatureError(f"the request has no header {missing[0]}", why="it is not signed")
    stamp = given["webhook-timestamp"]
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > len("9999999999999"):
        raise WebhookSignatureError("webhook-timestamp is not a time", why="it is whole seconds since the epoch")
    age_s = (time.time() if now is None else now) - int(stamp)
    if abs(age_s) > tolerance_s:
        raise WebhookSignatureError(
            f"the request was signed {abs(age_s):.0f} s {'ago' if age_s > 0 else 'in the future'}",
            why=f"tolerance_s is {tolerance_s:g}",
            fix="set the clock of this machine; a request that is kept and sent again is refused on purpose",
        )
    content = body.encode() if isinstance(body, str) else body
    wanted = sign(parse_secret(secret), given["webhook-id"], int(stamp), content).split()
    found = given["webhook-signature"].split()
    if not any(hmac.compare_digest(one.encode(), other.encode()) for one in wanted for other in found):
        raise WebhookSignatureError(
            "the signature does not fit the request",
            why="the secret is another one, or the body is not what was sent",
            fix="verify the body as it came, before it is parsed",
        )
    try:
        event = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise WebhookSignatureError("the body is not JSON", why=str(error)) from error
    if not isinstance(event, dict):
        raise WebhookSignatureError("the body is not an event", why="an event is a JSON object")
    return {"id": given["webhook-id"], **event}
