"""Who is told of the end of tasks in a run: receivers of webhooks, which belong to nobody who can die.

The service that calls them is the product's, down to the request and its signature; only resolving names and carrying
requests is done here. How a receiver answers stands in its URL, so that a run needs no further state.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from llama_deploy.client.webhooks import verify
from llama_deploy.control_plane import ControlPlane
from llama_deploy.errors import WebhookSignatureError
from llama_deploy.services.webhook import TIMEOUT_S, WebhookService
from llama_deploy.types import Webhook
from llama_deploy.types.webhooks import Address, WebhookSettings

SECRET_NAME = "main"  # noqa: S105 - a name
SECRET = "whsec_c2ltdWxhdGVkIHNlY3JldCBvZiBhIHJ1bg=="  # noqa: S105 - of receivers that there are not
SETTINGS = WebhookSettings(secrets={SECRET_NAME: SECRET})
GONE = "gone"
"""A receiver that wants nothing, ever."""
MANNERS = ("ready", "ready", "slow", "busy", "busy", "away", "forgets", GONE)
"""How receivers behave at first; in the end all of them take what they are told, but for one that is gone."""
TROUBLE_REQUESTS = 2
"""How many requests of one message meet that."""
_ADDRESS = ipaddress.ip_address("198.18.0.1")


def webhook_of(manner: str) -> Webhook:
    """The webhook of a receiver that behaves so."""
    return Webhook(url=f"http://receiver.test/{manner}", secret=SECRET_NAME)


def manner_of(webhook: Webhook) -> str:
    """How the receiver of a webhook behaves."""
    return urlsplit(webhook.url).path.strip("/")


@dataclass
class Heard:
    """What receivers have heard."""

    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By message: how often it was tried, whatever came of it."""
    events: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """By message: the events of genuine requests, in the order in which they came."""
    forged: list[str] = field(default_factory=list)
    """What was wrong with the others."""


class SimulatedWebhooks(WebhookService):
    """The product's service, with receivers in the place of the network."""

    def __init__(self, plane: ControlPlane, heard: Heard, chance: random.Random) -> None:
        super().__init__(plane.engine.webhooks.call, plane.webhooks, clock=plane.engine.clock)
        self._receiver = _Receiver(heard, chance)

    async def _address(self, host: str, port: int) -> Address:
        del host, port
        return _ADDRESS

    async def _client(self, scheme: str) -> Any:
        del scheme
        return self._receiver


class _Receiver:
    """Takes requests, with as much of an HTTP client as the service uses."""

    def __init__(self, heard: Heard, chance: random.Random) -> None:
        self._heard = heard
        self._chance = chance

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, *, content: bytes, headers: Mapping[str, str], extensions: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """Carry a request out; the answer is there within the block."""
        import httpx2

        del method, extensions
        manner, message = urlsplit(url).path.strip("/"), headers["webhook-id"]
        await asyncio.sleep(self._chance.uniform(0.0, 0.05))
        self._heard.asked[message] += 1
        trouble = self._heard.asked[message] <= TROUBLE_REQUESTS
        if manner == GONE:
            yield httpx2.Response(410)
            return
        if trouble and manner == "away":
            raise httpx2.ConnectError("connection refused")
        if trouble and manner == "busy":
            yield httpx2.Response(503, headers={"retry-after": "2"})
            return
        try:
            event = verify(headers, content, SECRET, tolerance_s=float("inf"))
        except WebhookSignatureError as error:
            self._heard.forged.append(f"{message}: {error}")
            yield httpx2.Response(400)
            return
        self._heard.events[message].append(event)
        if trouble and manner == "slow":
            await asyncio.sleep(self._chance.uniform(0.0, 2 * TIMEOUT_S))
        if trouble and manner == "forgets":  # the answer is lost on its way
            raise httpx2.ReadError("connection reset")
        await asyncio.sleep(self._chance.uniform(0.0, 0.05))
        yield httpx2.Response(204)
