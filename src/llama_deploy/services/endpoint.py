"""An HTTP endpoint as a service: one request per attempt, the arguments as its JSON body, the answer as the result.

The step's id goes along as `Idempotency-Key`, the same for all attempts, so that an endpoint that knows that header
does the work once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Literal

import httpx2

from llama_deploy.errors import NonRetryableError, ServiceRaisedError, SettingError
from llama_deploy.runtime.http_client import http_client
from llama_deploy.services.base import Service, StepContext
from llama_deploy.services.results import result_from_value
from llama_deploy.types import ServiceDefinition, TaskResult

BODY_CHARACTERS = 500
"""How much of a refusal's body an error tells."""
TRY_AGAIN = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
"""Refusals (4xx) after which another attempt may succeed; so may it after every 5xx."""


class EndpointService(Service):
    """Sends each step to `url`. A JSON answer is the result's value, any other the result's text.

    `headers` may be a function that is called for each request, where a token changes. Network errors, 5xx, 429 (with
    its `Retry-After`), 408, 409 and 425 are tried again; every other refusal is final. Redirects are not followed.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        method: Literal["POST", "PUT", "PATCH", "GET"] = "POST",
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        description: str = "",
        answer_bytes_max: int = 4_194_304,
        concurrency: int = 16,
        run_timeout_s: float = 60.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingError(f"{url!r} is no address of an endpoint", fix="begin with https:// or http://")
        self.url = url
        self.method = method
        self.headers = headers
        self.answer_bytes_max = answer_bytes_max
        self._client: httpx2.AsyncClient | None = None
        self.definition = ServiceDefinition(
            service_name=name,
            description=description or f"{method} {url.partition('?')[0]}",
            kind="other",
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
        )

    async def start(self) -> None:
        """Open the connections that all requests share."""
        self._client = http_client(timeout=self.definition.run_timeout_s, follow_redirects=False)

    async def stop(self) -> None:
        """Close them."""
        if self._client is not None:
            await self._client.aclose()

    async def run(self, context: StepContext) -> TaskResult:
        """One request."""
        assert self._client is not None, "the runner starts a service before its first step"
        given = context.arguments
        headers = dict(self.headers() if callable(self.headers) else self.headers or {})
        headers |= {"Idempotency-Key": context.step_id, "Accept": "application/json, text/*;q=0.9, */*;q=0.1"}
        if self.method == "GET":
            request: dict[str, Any] = {"params": given if isinstance(given, dict) else {"input": given}}
        elif isinstance(given, str):
            request = {"content": given.encode()}
            headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        else:
            request = {"json": given}
        try:
            async with self._client.stream(self.method, self.url, headers=headers, **request) as answer:
                body = await self._read(answer)
        except httpx2.HTTPError as error:
            raise ServiceRaisedError(
                f"{self._place} does not answer", why=str(error) or type(error).__name__
            ) from error
        if answer.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            raise self._refused(answer, body)
        if "json" in answer.headers.get("content-type", ""):
            try:
                return result_from_value(httpx2.Response(HTTPStatus.OK, content=body).json())
            except ValueError as error:
                raise ServiceRaisedError(f"{self._place} answered with broken JSON", why=str(error)) from error
        return result_from_value(body.decode(answer.encoding or "utf-8", errors="replace"))

    @property
    def _place(self) -> str:
        """The address without its query, where secrets stand."""
        return self.url.partition("?")[0]

    async def _read(self, answer: httpx2.Response) -> bytes:
        body = bytearray()
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > self.answer_bytes_max:
                raise NonRetryableError(
                    f"{self._place} answered with more than {self.answer_bytes_max} bytes",
                    fix="raise answer_bytes_max of the service, or have it answer with a reference",
                )
        return bytes(body)

    def _refused(self, answer: httpx2.Response, body: bytes) -> Exception:
        told = body.decode(errors="replace").strip()[:BODY_CHARACTERS]
        what = f"{self._place} answered {answer.status_code}"
        if answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR and answer.status_code not in TRY_AGAIN:
            return NonRetryableError(what, why=told)
        error = ServiceRaisedError(what, why=told)
        after = answer.headers.get("retry-after", "")
        if after.isdigit():
            error.retry_after_s = float(after)  # type: ignore[attr-defined]  # whoever records the failure looks for it
        return error
