"""What a step's code may ask of the control plane, for code in a thread: each call waits where it stands.

The same names as on `StepContext`, reached as `context.blocking`. A wait ends with `StepCanceledError` when the
attempt is not wanted any more. Calling it on the event loop would stop the loop, and is refused.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from llama_deploy.errors import NonRetryableError, StepCanceledError
from llama_deploy.services.desk import take_page
from llama_deploy.services.threads import standing_by
from llama_deploy.types import TaskOptions

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

    def ledger(self, name: str = "transcript", *, first: int = 0) -> list[Any]:
        """As `StepContext.ledger`."""
        items: list[Any] = []
        position: int | None = first
        while position is not None:
            position = take_page(items, self._wait(self._context.desk.read_ledger(name, position)))
        return items

    def ask(self, prompt: str, **details: Any) -> Any:
        """As `StepContext.ask`: the thread waits where it stands, for as long as nobody answers.

        It keeps its place of `concurrency`, and its run deadline stands still. Nothing that the function has done
        before is done again, unless its process ends meanwhile: then the next attempt begins the function anew and is
        given the recorded answers in the same order. Raises `StepCanceledError` when the attempt should stop.
        """
        context = self._context
        answer = context.start_waiting(context.ask(prompt, **details))
        try:
            return self._wait(answer)
        finally:
            context.end_waiting(answer)

    def sleep(self, seconds: float) -> None:
        """Let time pass. Raises `StepCanceledError` as soon as the attempt should stop."""
        if self._context.wait_canceled(seconds):
            self._context.raise_if_canceled()

    def call(
        self,
        service: str,
        /,
        *,
        input: Any = msgspec.UNSET,
        key: str | None = None,
        options: TaskOptions | Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        wait_for_service: bool = False,
        **arguments: Any,
    ) -> Any:
        """As `StepContext.call`. The thread waits and does not count towards the service's `concurrency` meanwhile."""
        from llama_deploy.services.calls import call_timeout, output_of

        desk = self._context.desk
        name, body = self._context.prepare_call(
            service, input, arguments, key, options, wait_for_service=wait_for_service
        )
        future = desk.call(name, body)
        try:
            with standing_by():
                returned = self._wait(future, timeout_s)
        except TimeoutError as error:
            desk.end_call(name)
            raise call_timeout(service, timeout_s or 0.0) from error
        return output_of(returned, service)

    def _wait(self, future: Future[T], timeout_s: float | None = None) -> T:
        try:
            return future.result(timeout_s)
        except CancelledError as error:
            raise StepCanceledError("the attempt has ended") from error


def _called(function: Callable[[], Any]) -> Any:
    value = function()
    if inspect.iscoroutine(value):
        value.close()
        raise NonRetryableError("an async function cannot be awaited in a thread", fix="give a plain function")
    return value
