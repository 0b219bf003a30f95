"""Places in the product where one durable step ends and the next begins, where a test may make the process die.

`failpoint("name")` costs one dictionary test when nothing is armed. Tests arm a name with an action: a callable, or,
for a child process, the environment variable `LLAMA_DEPLOY_FAILPOINT=name[:n]`, which kills the process (exit code
197, nothing flushed) at the n-th passing of that place.
"""

from __future__ import annotations

import os
from collections.abc import Callable

FAILPOINTS: frozenset[str] = frozenset(
    {
        "store.before_commit",
        "store.after_commit",
        "engine.after_record",
        "engine.before_publish",
        "gateway.before_ack",
        "runner.before_answer",
        "runner.after_answer",
    }
)
"""Every failpoint of the product. A test checks that each name is used, and that no other name is."""

EXIT_CODE = 197

_armed: dict[str, Callable[[], None]] = {}


def failpoint(name: str) -> None:
    """A place where a crash is interesting. Does nothing unless a test armed `name`."""
    if _armed:
        action = _armed.get(name)
        if action is not None:
            action()


def arm(name: str, action: Callable[[], None]) -> None:
    """Run `action` whenever `name` is passed, until `disarm`."""
    if name not in FAILPOINTS:
        raise KeyError(name)
    _armed[name] = action


def disarm(name: str | None = None) -> None:
    """Forget one armed failpoint, or all of them."""
    if name is None:
        _armed.clear()
    else:
        _armed.pop(name, None)


def arm_from_environment() -> None:
    """Arm what `LLAMA_DEPLOY_FAILPOINT` asks for; called once by the entry point of every process."""
    setting = os.environ.get("LLAMA_DEPLOY_FAILPOINT")
    if not setting:
        return
    name, _, count = setting.partition(":")
    remaining = int(count or "1")

    def die() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining <= 0:
            os._exit(EXIT_CODE)

    arm(name, die)
