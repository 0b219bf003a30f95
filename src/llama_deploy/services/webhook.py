"""The control plane's own service that tells receivers over HTTP of the end of tasks: one request is one attempt.

It runs beside the control plane as an ordinary instance, so that claims, retries, deadlines and crashes are those of
any step. Names are resolved here and the address is checked before it is called, so that what a name stands for cannot
change in between. Neither the query of a URL nor a secret nor anything that a receiver answers gets into an error.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from llama_deploy._version import __version__
from llama_deploy.errors import WebhookFailedError
from llama_deploy.messages.webhooks import WebhookCall, sign
from llama_deploy.runtime import Clock, SystemClock
from llama_deploy.runtime.http_client import http_client
from llama_deploy.services.base import Service, StepContext
from llama_deploy.types import ActionTypes, RetryPolicy, ServiceDefinition, TaskResult
from llama_deploy.types.webhooks import WEBHOOK_SERVICE, Address, WebhookSettings, as_address, redacted

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

RETRY = RetryPolicy(max_retries=12, initial_s=5.0, multiplier=3.0, cap_s=21_600.0)
"""A receiver that is away is called 12 more times: after 5 s, 15 s, 45 s, and so on up to every 6 hours, for 28 hours.
"""
TIMEOUT_S = 15.0
"""How long one request may take, in seconds, from resolving the name to the head of the answer."""
REQUESTS_MAX = 64
"""Requests under way at the same time."""
HOST_REQUESTS_MAX = 8
"""Requests to one host under way at the same time."""
HOST_BUSY_S = 2.0
"""How long a request waits for its turn at its host before it gives its place to a request for another."""

_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class WebhookService(Service):
    """Makes webhook requests: `call` says what each step has to send, `settings` what may be called."""

    def __init__(
        self,
        call: Callable[[str], Awaitable[WebhookCall]],
        settings: WebhookSettings,
        *,
        clock: Clock | None = None,
        retry: RetryPolicy = RETRY,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._call = call
        self._settings = settings
        self._clock = clock or SystemClock()
        self._timeout_s = timeout_s
        self._clients: dict[str, AsyncClient] = {}
        self._places: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()
        self.definition = ServiceDefinition(
            service_name=WEBHOOK_SERVICE,
            description="Tells webhooks of the end of tasks.",
            concurrency=REQUESTS_MAX,
            run_timeout_s=HOST_BUSY_S + 2 * timeout_s,
            retry=retry,
        )

    async def stop(self) -> None:
        """Close the connections to receivers."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    async def run(self, context: StepContext) -> TaskResult:
        """Make the request. Raises `WebhookFailedError`, which says whether to try again."""
        if context.action != ActionTypes.COMPLETED_TASK.value:
            raise WebhookFailedError(f"{WEBHOOK_SERVICE} takes no tasks", retryable=False)
        call = await self._call(context.step_id)
        place = urlsplit(call.url).netloc.rpartition("@")[2].lower()
        semaphore = self._places.setdefault(place, asyncio.Semaphore(HOST_REQUESTS_MAX))
        self._users[place] += 1
        try:
            try:
                async with asyncio.timeout(HOST_BUSY_S):
                    await semaphore.acquire()
            except TimeoutError as error:
                what = f"{place} has {HOST_REQUESTS_MAX} requests of this control plane to answer already"
                raise WebhookFailedError(what, retryable=True) from error
            try:
                status = await self._post(call)
            finally:
                semaphore.release()
        finally:
            self._users[place] -= 1
            if not self._users[place]:
                del self._users[place], self._places[place]
        return TaskResult(task_id=context.task_id, history=[], result=str(status))

    async def _post(self, call: WebhookCall) -> int:
        import httpx2

        shown = redacted(call.url)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._request(call)
        except TimeoutError:  # the cause is left out: its text may have more of the URL than is to be seen
            raise WebhookFailedError(f"{shown} has not answered within {self._timeout_s:g} s", retryable=True) from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError):
            raise WebhookFailedError(f"{shown} cannot be called", why="it is not a URL", retryable=False) from None
        except httpx2.TransportError as error:
            why = _without(call.url, str(error) or type(error).__name__)
            raise WebhookFailedError(f"{shown} cannot be reached", why=why, retryable=True) from None
        return _judged(shown, response, self._clock.now())

    async def _request(self, call: WebhookCall) -> Response:
        """The head of the answer; its body is nobody's business and is not read."""
        parts = urlsplit(call.url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await self._address(host, port)
        literal = f"[{address}]" if ":" in str(address) else str(address)
        target = urlunsplit((parts.scheme, f"{literal}:{port}", parts.path or "/", parts.query, ""))
        timestamp = int(self._clock.now())
        headers = {
            "host": parts.netloc.rpartition("@")[2],
            "content-type": "application/json",
            "user-agent": f"llama_deploy/{__version__}",
            "webhook-id": call.id,
            "webhook-timestamp": str(timestamp),
        }
        if call.keys:
            headers["webhook-signature"] = sign(call.keys, call.id, timestamp, call.body)
        client = await self._client(parts.scheme)
        extensions: dict[str, Any] = {"sni_hostname": host} if as_address(host) is None else {}
        async with client.stream("POST", target, content=call.body, headers=headers, extensions=extensions) as response:
            return response

    async def _address(self, host: str, port: int) -> Address:
        """The address to call. Raises `WebhookFailedError` where none that the name stands for may be called."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise WebhookFailedError(f"the name {host} cannot be resolved", why=str(error), retryable=True) from None
        reason = ""
        for *_, place in found:
            address = as_address(str(place[0]))
            if address is None:
                continue
            reason = self._settings.refuses_address(host, address)
            if not reason:
                return address
        raise WebhookFailedError(
            f"{host} may not be called",
            why=reason or "it has no address",
            fix="allow it in the webhook hosts of the control plane",
            retryable=False,
        )

    async def _client(self, scheme: str) -> AsyncClient:
        client = self._clients.get(scheme)
        if client is None:
            # The certificates take a while to read, which is nothing for the event loop.
            verify = await asyncio.to_thread(ssl.create_default_context) if scheme == "https" else False
            client = self._clients.setdefault(
                scheme, http_client(follow_redirects=False, trust_env=False, verify=verify, timeout=None)
            )
        return client


def _judged(shown: str, response: Response, now: float) -> int:
    """The status of an answer that says yes. Raises `WebhookFailedError` for every other."""
    status = response.status_code
    if response.is_success:
        return status
    phrase = response.reason_phrase if status in list(HTTPStatus) else ""
    what = f"{shown} has answered {status} {HTTPStatus(status).phrase if phrase else ''}".rstrip()
    if response.is_redirect or status < HTTPStatus.BAD_REQUEST:
        raise WebhookFailedError(what, why="redirects are not followed", fix="give the final URL", retryable=False)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _LATER:
        raise WebhookFailedError(what, why="the receiver does not want it", retryable=False)
    error = WebhookFailedError(what, retryable=True)
    error.retry_after_s = _retry_after_s(response.headers.get("retry-after", ""), now)
    raise error


def _retry_after_s(text: str, now: float) -> float | None:
    """Seconds that `Retry-After` asks for (RFC 9110), as a number or as a date; `None` where it says neither."""
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < len("1000000000"):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.fromtimestamp(now, UTC)).total_seconds())


def _without(url: str, text: str) -> str:
    """The text of an error without the part of a URL that may be secret."""
    query = urlsplit(url).query
    return text.replace(query, "…") if query else text
