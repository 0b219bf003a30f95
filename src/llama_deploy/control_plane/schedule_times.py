"""The times of a schedule: which there are, in which zone, and which of the past ones still count.

Pure: it knows no clock and submits nothing. Cron expressions mean what they mean to Debian's cron, changes of summer
time included: what falls into the hour that is left out comes right after it, and what names a time that there is twice
comes at the first; an expression with `*` in its minutes or hours goes by real time.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.schedules import Schedule

CAUGHT_UP_MAX = 1_000
"""Times that are caught up at most, the newest of them."""

_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = 5


def check_timing(cron: str | None, time_zone: str) -> None:
    """Raise `InvalidRequestError` for a time zone that there is not, and for a cron expression that means no time."""
    zone = _zone(time_zone)
    if cron is not None and next(_cron_times(cron, zone, 1_700_000_000.0), None) is None:
        raise InvalidRequestError(f"the cron expression {cron!r} never comes", why="there is no such date")


def zone_of(schedule: Schedule) -> ZoneInfo:
    """The time zone of a schedule. Raises `InvalidRequestError` where there is none of this name."""
    return _zone(schedule.time_zone)


def times_after(schedule: Schedule, when: float, anchor: float) -> Iterator[float]:
    """The schedule's times after `when`, ascending, each once. `anchor` is where `every_s` counts from."""
    if schedule.start_at is not None:
        anchor = schedule.start_at
        when = max(when, schedule.start_at - 0.001)
    found = _every(schedule.every_s, when, anchor) if schedule.every_s is not None else _cron(schedule, when)
    for time in found:
        if schedule.end_at is not None and time > schedule.end_at:
            return
        yield time


def delay_of(schedule: Schedule, name: str, due_at: float) -> float:
    """How much later than its time a task is submitted: the same whenever it is asked."""
    if not schedule.jitter_s:
        return 0.0
    digest = hashlib.blake2b(f"{name}@{due_at:.3f}".encode(), digest_size=8).digest()
    return schedule.jitter_s * int.from_bytes(digest) / 2**64


def missed(schedule: Schedule, name: str, after: float, now: float, *, anchor: float, on_time_s: float) -> _Due:
    """The times after `after` that have come by `now`, and how many of them are left out as missed.

    What is late by `on_time_s` at most counts as on time: a restart that takes a moment loses nothing.
    """
    window_s = max(schedule.catch_up_window_s if schedule.catch_up != "none" else 0.0, on_time_s)
    begin = max(after, now - window_s - schedule.jitter_s)
    if schedule.every_s is not None:
        begin = max(begin, now - schedule.jitter_s - schedule.every_s * (CAUGHT_UP_MAX + 1))
    due = _Due()
    if begin > after and next(times_after(schedule, after, anchor), math.inf) <= begin:
        due.missed += 1  # and who knows how many more; they are not counted one by one
        due.handled = begin
    for time in times_after(schedule, begin, anchor):
        late_s = now - time - delay_of(schedule, name, time)
        if late_s < 0:
            break
        due.handled = time
        if late_s <= on_time_s:
            if schedule.catch_up == "latest":
                due.missed += due.forget_late()
            due.times.append(time)
        elif schedule.catch_up == "none":
            due.missed += 1
        else:
            if schedule.catch_up == "latest":
                due.missed += due.forget_late()
            elif len(due.times) == CAUGHT_UP_MAX:
                due.missed += 1
            due.late += 1
            due.times.append(time)
    return due


class _Due:
    """Times that have come."""

    def __init__(self) -> None:
        self.times: deque[float] = deque(maxlen=CAUGHT_UP_MAX)
        self.late = 0
        self.missed = 0
        self.handled: float | None = None
        """The latest time that has come, be it one that counts or not."""

    def forget_late(self) -> int:
        """Leave out the late time that was to be caught up, for there is a newer one; how many these are."""
        count, self.late = self.late, 0
        for _ in range(count):
            self.times.pop()
        return count


def stamp(when: float) -> str:
    """A time as it stands in the ids of tasks: in UTC, with milliseconds where there are any."""
    moment = datetime.fromtimestamp(round(when, 3), UTC)
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


def _every(every_s: float, when: float, anchor: float) -> Iterator[float]:
    count = max(0, math.floor((when - anchor) / every_s))
    while True:
        time = round(anchor + count * every_s, 3)
        if time > when:
            yield time
        count += 1


def _cron(schedule: Schedule, when: float) -> Iterator[float]:
    assert schedule.cron is not None
    yield from _cron_times(schedule.cron, zone_of(schedule), when)


def _cron_times(cron: str, zone: ZoneInfo, when: float) -> Iterator[float]:
    from cronsim import CronSim, CronSimError  # most control planes have no schedules

    expression = _NAMED.get(cron.strip().lower(), cron)
    if len(expression.split()) != _FIELDS:
        raise InvalidRequestError(
            f"the cron expression {cron!r} has {len(expression.split())} fields",
            why="minute, hour, day of month, month, day of week",
            fix="for example 0 3 * * * for every day at three",
        )
    begin = datetime.fromtimestamp(when, zone)
    if begin.fold:  # the second pass of an hour that there is twice: begin before the first, and leave out what is past
        begin = datetime.fromtimestamp(when - timedelta(hours=3).total_seconds(), zone)
    try:
        for moment in CronSim(expression, begin):
            time = moment.timestamp()
            if time > when:
                when = time
                yield time
    except (CronSimError, OverflowError) as error:
        raise InvalidRequestError(
            f"the cron expression {cron!r} cannot be read",
            why=str(error),
            fix="minute, hour, day of month, month, day of week, for example 0 3 * * MON-FRI",
        ) from error


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise InvalidRequestError(
            f"there is no time zone {name!r}",
            why="a time zone has a name of the IANA database",
            fix="for example Europe/Berlin, America/New_York or UTC",
        ) from error
