"""How an exception of user code becomes the `TaskError` that is recorded.

A pure function: it decides nothing about retries beyond saying whether another attempt could end differently. The
traceback keeps the frames of the user's code and of the libraries it calls; frames that only carry the call there
(this package, asyncio, the workflow engine) are left out, and no values of variables are recorded.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import os
import sys
import traceback
from pathlib import Path

from llama_deploy.errors import (
    Category,
    LlamaDeployError,
    NonRetryableError,
    ResultNotSerialisableError,
    ServiceRaisedError,
    TaskCanceledError,
)
from llama_deploy.types import TaskError

MESSAGE_CHARS_MAX = 4_000
"""The longest message, and the longest fix, that is recorded, in characters; the rest is cut off."""
TRACEBACK_CHARS_MAX = 16_000
"""The longest traceback that is recorded, in characters; of a longer one the end is kept, which names the error."""

_FINAL = (NonRetryableError, ResultNotSerialisableError, TaskCanceledError)
_CARRIERS = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, asyncio.__file__, concurrent.futures.__file__))
_CARRYING_PACKAGES = ("workflows", "llama_index_instrumentation")


def error_from_exception(exc: BaseException) -> TaskError:
    """What is recorded of `exc`.

    An error of this package keeps its code and its fix; any other exception is `LD502`. Not retryable are errors that
    say so (`NonRetryableError`, or an attribute `retryable = False`), input that does not fit, and results without a
    JSON form. An attribute `retry_after_s` (seconds, finite, not negative) is passed on. Never raises.
    """
    return TaskError(
        code=exc.code if isinstance(exc, LlamaDeployError) else ServiceRaisedError.code,
        type=type(exc).__qualname__,
        message=_message(exc),
        fix=_shortened(exc.fix) if isinstance(exc, LlamaDeployError) else "",
        retryable=_is_retryable(exc),
        traceback=_traceback(exc),
        retry_after_s=_retry_after_s(exc),
    )


def _is_retryable(exc: BaseException) -> bool:
    if isinstance(exc, _FINAL) or getattr(exc, "retryable", True) is False:
        return False
    return not (isinstance(exc, LlamaDeployError) and exc.category is Category.INVALID)


def _message(exc: BaseException) -> str:
    try:
        message = str(exc) or "(no message)"
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the failure
        message = f"{type(exc).__qualname__} (its message cannot be shown)"
    return _shortened(message)


def _shortened(text: str) -> str:
    text = _without_surrogates(text)
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"


def _retry_after_s(exc: BaseException) -> float | None:
    value = getattr(exc, "retry_after_s", None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _traceback(exc: BaseException) -> str | None:
    try:
        report = traceback.TracebackException.from_exception(exc, compact=True)
        _trim(report)
        text = _without_surrogates("".join(report.format()))
    except Exception:  # noqa: BLE001 - an exception may refuse to be formatted
        return None
    return text if len(text) <= TRACEBACK_CHARS_MAX else "…" + text[1 - TRACEBACK_CHARS_MAX :]


def _trim(report: traceback.TracebackException) -> None:
    """Leave the carrying frames out, here and in every exception that is shown with this one."""
    carriers = _CARRIERS + tuple(
        f"{Path(module.__file__).parent}{os.sep}"
        for name in _CARRYING_PACKAGES
        if (module := sys.modules.get(name)) is not None and module.__file__ is not None
    )
    seen: set[int] = set()
    pending: list[traceback.TracebackException | None] = [report]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        kept = [frame for frame in current.stack if not frame.filename.startswith(carriers)]
        current.stack = traceback.StackSummary.from_list(kept or current.stack)
        pending += [current.__cause__, current.__context__, *(current.exceptions or ())]


def _without_surrogates(text: str) -> str:
    """Text that can be encoded: a lone surrogate (from undecodable bytes of the system) is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
