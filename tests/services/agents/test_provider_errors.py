"""What the refusals of model providers say about trying again, in the forms that the libraries give them."""

from __future__ import annotations

import httpx
import httpx2
import openai
import pytest
from pydantic_ai.exceptions import ModelHTTPError, ModelQuotaExceededError, ModelRateLimitError

from llama_deploy.services.agents.provider_errors import add_retry_advice
from llama_deploy.services.failures import error_from_exception


def advice(error: Exception) -> tuple[bool, float | None]:
    add_retry_advice(error)
    recorded = error_from_exception(error)
    return recorded.retryable, recorded.retry_after_s


def from_openai(status: int, body: object = None, **headers: str) -> Exception:
    kinds = {429: openai.RateLimitError, 401: openai.AuthenticationError, 503: openai.InternalServerError}
    kind = kinds.get(status, openai.BadRequestError)
    try:  # whichever HTTP client the installed version stands on
        request = httpx2.Request("POST", "http://model.test")
        return kind("no", response=httpx2.Response(status, headers=headers, request=request), body=body)
    except TypeError:
        old = httpx.Request("POST", "http://model.test")
        return kind("no", response=httpx.Response(status, headers=headers, request=old), body=body)  # type: ignore[arg-type,unused-ignore]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (from_openai(429, **{"retry-after": "7"}), (True, 7.0)),
        (from_openai(429, **{"retry-after-ms": "1500", "retry-after": "7"}), (True, 1.5)),
        (from_openai(429), (True, None)),
        (from_openai(429, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), (True, None)),
        (from_openai(429, {"code": "insufficient_quota"}), (False, None)),
        (from_openai(401), (False, None)),
        (from_openai(400), (False, None)),
        (from_openai(503, **{"retry-after": "2"}), (True, 2.0)),
        (ModelRateLimitError("model", "slow down", retry_after=3.0), (True, 3.0)),
        (ModelHTTPError(status_code=529, model_name="model", headers={"retry-after": "4"}), (True, 4.0)),
        (ModelHTTPError(status_code=404, model_name="model"), (False, None)),
        (ValueError("something else"), (True, None)),
    ],
)
def test_advice(error: Exception, expected: tuple[bool, float | None]) -> None:
    assert advice(error) == expected


def test_money_does_not_come_back_by_waiting() -> None:
    error = ModelQuotaExceededError("model", "no money")
    error.status_code = 429  # type: ignore[attr-defined]
    assert advice(error) == (False, None)


def test_the_cause_within_another_error() -> None:
    error = RuntimeError("the node failed")
    error.__cause__ = from_openai(429, **{"retry-after": "7"})
    assert advice(error) == (True, 7.0)


def test_what_an_error_says_itself_stands() -> None:
    error = from_openai(400, **{"retry-after": "7"})
    error.retryable = True  # type: ignore[attr-defined]
    error.retry_after_s = 1.0  # type: ignore[attr-defined]
    assert advice(error) == (True, 1.0)
