"""What a model provider's refusal says about trying again.

The libraries wrap the refusals of many providers; they share the HTTP status, the headers of the answer, or a number of
seconds. Nothing is imported to read them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

_WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429})
_SERVER_ERRORS_FROM = 500
_CLIENT_ERRORS_FROM = 400
_USED_UP = ("insufficient_quota", "billing")
_CHAIN_LENGTH_MAX = 8


def add_retry_advice(error: Exception) -> None:
    """Set `retryable` and `retry_after_s` on an exception whose cause is a provider's refusal.

    What the exception says by itself stands. A refusal for too many requests, or by a server in trouble, is tried
    again, after as long as it asks for; one of the request itself (its key, its content, an account without money) is
    final.
    """
    for found in _chain(error):
        status = _status(found)
        if status is None and _seconds(found) is None:
            continue
        seconds = _seconds(found)
        with contextlib.suppress(AttributeError):  # an exception that takes no attributes goes without
            if not hasattr(error, "retryable") and status is not None:
                error.retryable = _may_change(found, status)  # type: ignore[attr-defined]
            if seconds is not None and not hasattr(error, "retry_after_s"):
                error.retry_after_s = seconds  # type: ignore[attr-defined]
        return


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    for _ in range(_CHAIN_LENGTH_MAX):
        if found is None:
            return
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    if status is None:
        status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= _CLIENT_ERRORS_FROM else None


def _may_change(error: BaseException, status: int) -> bool:
    if type(error).__name__ == "ModelQuotaExceededError":
        return False
    told = f"{getattr(error, 'code', '')} {getattr(error, 'type', '')}"
    if any(word in told for word in _USED_UP):
        return False
    return status in _WORTH_ANOTHER_TRY or status >= _SERVER_ERRORS_FROM


def _seconds(error: BaseException) -> float | None:
    """How long the provider asks to wait."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        headers = getattr(error, "headers", None)
    found: list[tuple[Any, float]] = [(getattr(error, "retry_after", None), 1.0)]
    if isinstance(headers, Mapping) or hasattr(headers, "get"):
        found += [(headers.get("retry-after-ms"), 0.001), (headers.get("retry-after"), 1.0)]
    for value, unit in found:
        try:
            seconds = float(value) * unit
        except (TypeError, ValueError):  # none is given, or a date, which no provider of models sends
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
