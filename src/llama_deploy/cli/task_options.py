"""The flags of whatever submits a task (`run`, a schedule): deadlines, retries, a later beginning, whose turn it is.

They become `TaskOptions`; what each of them means, and what holds where it is left out, is said there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


class Duration(click.ParamType[float]):
    """Seconds, or a number with a unit: `90`, `1.5h`, `30s`, `200ms`, `2d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds. Fails with what would have been right."""
        found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            if isinstance(value, float):
                return value
            self.fail(f"{value!r} is no span of time: give seconds, or a number with a unit (ms s m h d).", param, ctx)
        return float(found[1]) * _UNIT_S[found[2] or "s"]


class PointInTime(click.ParamType[float]):
    """A date and time, in the local time zone unless it says which: `2030-01-31T08:00`, `2030-01-31T08:00Z`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds since the epoch. Fails with what would have been right."""
        if isinstance(value, float):
            return value
        try:
            return datetime.fromisoformat(str(value)).astimezone().timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: give a date and time such as 2030-01-31T08:00 (or …08:00Z).", param, ctx)


DURATION, TIME = Duration(), PointInTime()

_BEGINNING = (
    click.option("--at", "run_at", type=TIME, metavar="TIME", help="Not to begin before; local time without a zone."),
    click.option("--delay", "delay_s", type=DURATION, metavar="DURATION", help="Not to begin sooner than in so long."),
)
_OPTIONS = (
    click.option(
        "--total-timeout", "total_timeout_s", type=DURATION, metavar="DURATION",
        help="The task fails when it takes longer."
    ),
    click.option(
        "--queue-timeout", "queue_timeout_s", type=DURATION, metavar="DURATION",
        help="A step fails that nobody has taken for so long.",
    ),
    click.option(
        "--run-timeout", "run_timeout_s", type=DURATION, metavar="DURATION", help="Deadline of each attempt of a step."
    ),
    click.option(
        "--heartbeat-timeout", "heartbeat_timeout_s", type=DURATION, metavar="DURATION",
        help="An attempt is given up that shows no sign of life for so long.",
    ),
    click.option("--retries", type=click.IntRange(min=0), metavar="NUMBER", help="Retries of each failed step."),
    click.option(
        "--when-exhausted", type=click.Choice(["fail", "pause"]), help="After the last retry: fail, or pause the task."
    ),
    click.option("--priority", type=click.IntRange(0, 9), help="What waits goes by it, 9 first; 5 without it."),
    click.option("--key", metavar="KEY", help="Whom the work is for: keys take turns, and may have limits."),
    click.option("--orchestrator", metavar="NAME", help="Which of the deployment's orchestrators decides."),
)  # fmt: skip
_NAMES = (
    "run_at", "delay_s", "total_timeout_s", "queue_timeout_s", "run_timeout_s", "heartbeat_timeout_s", "priority",
    "key", "orchestrator",
)  # fmt: skip


def with_task_options(*, beginning: bool = True) -> Callable[[Command], Command]:
    """Give a command the flags; `taken_options` takes them out of its arguments again."""

    def decorate(command: Command) -> Command:
        for option in reversed((*_BEGINNING, *_OPTIONS) if beginning else _OPTIONS):
            command = option(command)
        return command

    return decorate


def taken_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """The fields of `TaskOptions` that were given, taken out of a command's arguments."""
    given = {name: value for name in _NAMES if (value := arguments.pop(name, None)) is not None}
    retry = {"max_retries": arguments.pop("retries"), "when_exhausted": arguments.pop("when_exhausted")}
    asked = {name: value for name, value in retry.items() if value is not None}
    return {**given, "retry": asked} if asked else given
