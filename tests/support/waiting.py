"""Waiting in a test: for a condition, with a deadline, and never for a length of time.

A test that waits for a condition is as fast as the machine allows and says what it waited for when it fails.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

Value = TypeVar("Value")

DEADLINE_S = 60.0
"""How long a test waits for what must come, before it counts as failed. It only bounds how long a failing test takes:
a machine that is slow, or stands still for some seconds, must never reach it."""
PROCESS_S = 180.0
"""The same where whole programs are started and run to their end, which a busy machine takes many times as long for."""
LOOK_AGAIN_S = 0.005
"""How soon the condition is looked at again when no event tells that something changed."""


@overload
async def eventually(
    condition: Callable[[], Awaitable[Value]], deadline_s: float = DEADLINE_S, *, changed: asyncio.Event | None = None
) -> Value: ...


@overload
async def eventually(
    condition: Callable[[], Value], deadline_s: float = DEADLINE_S, *, changed: asyncio.Event | None = None
) -> Value: ...


async def eventually(
    condition: Callable[[], Any], deadline_s: float = DEADLINE_S, *, changed: asyncio.Event | None = None
) -> Any:
    """Wait until `condition()` is true, and return its value.

    `condition` may be a plain or an async function. With `changed`, it is looked at again only when that event is
    set (and clears it); without, a few hundred times a second. Raises `AssertionError` with the condition's last
    value and its source after `deadline_s` seconds. An exception of the condition is the test's.
    """
    value = None
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                if changed is not None:
                    changed.clear()
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                if changed is None:
                    await asyncio.sleep(LOOK_AGAIN_S)
                else:
                    await changed.wait()
    except TimeoutError:
        message = f"not true within {deadline_s} s: {_source(condition)}; its last value: {value!r}"
        raise AssertionError(message) from None


def _source(condition: Callable[[], Any]) -> str:
    """The text of the condition, for the message."""
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
