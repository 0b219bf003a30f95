"""What a step's code may ask of the control plane, for code in a thread: each call waits where it stands.

The same names as on `StepContext`, reached as `context.blocking`. A wait ends with `StepCanceledError` when the
attempt is not wanted any more. Calling it on the event loop would stop the loop, and is refused.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from llama_deploy.errors import NonRetryableError, StepCanceledError

if TYPE_CHECKING:
    from llama_deploy.services.base import StepContext

T = TypeVar("T")


class Blocking:
    """The waiting forms of one context's methods."""

    def __init__(self, context: StepContext) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._context = context
            return
        raise NonRetryableError(
            "`blocking` would stop the event loop here", fix="in an async function, await the context's own methods"
        )

    def once(self, key: str, function: Callable[[], Any]) -> Any:
        """As `StepContext.once`, with a plain function, which is called in this thread."""
        from llama_deploy.services.base import encode_value

        context = self._context
        first, outcome = context.begin_once(key)
        if not first:
            return self._wait(outcome)
        try:
            recorded = self._wait(context.desk.remember(key, encode_value(_called(function))))
        except BaseException as error:
            context.end_once(key, outcome, error)
            raise
        return context.end_once(key, outcome, recorded)

    def _wait(self, future: Future[T]) -> T:
        try:
            return future.result()
        except CancelledError as error:
            raise StepCanceledError("the attempt has ended") from error


def _called(function: Callable[[], Any]) -> Any:
    value = function()
    if inspect.iscoroutine(value):
        value.close()
        raise NonRetryableError("an async function cannot be awaited in a thread", fix="give a plain function")
    return value
