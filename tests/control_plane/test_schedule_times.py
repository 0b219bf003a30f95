"""The times of schedules: cron in time zones with summer time, intervals without drift, what was missed."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.control_plane.schedule_times import CAUGHT_UP_MAX, check_timing, delay_of, missed, stamp, times_after
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.schedules import Schedule


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def local(cron: str, zone: str, begin: str, count: int) -> list[str]:
    """The next times in their own zone, with the offset, so that both passes of an hour can be told apart."""
    schedule = Schedule(cron=cron, time_zone=zone)
    found = islice(times_after(schedule, datetime.fromisoformat(begin).timestamp(), 0.0), count)
    return [datetime.fromtimestamp(time, ZoneInfo(zone)).strftime("%m-%d %H:%M%z") for time in found]


@pytest.mark.parametrize(
    ("cron", "zone", "begin", "expected"),
    [
        ("0 3 * * *", "UTC", "2026-01-31T00:00Z", ["01-31 03:00+0000", "02-01 03:00+0000"]),
        ("30 9 * * MON-FRI", "Europe/Berlin", "2026-01-02T12:00Z", ["01-05 09:30+0100", "01-06 09:30+0100"]),
        ("0 0 L * *", "UTC", "2026-02-01T00:00Z", ["02-28 00:00+0000", "03-31 00:00+0000"]),
        ("@monthly", "UTC", "2026-01-15T00:00Z", ["02-01 00:00+0000", "03-01 00:00+0000"]),
        # Berlin, 29 March 2026: 02:00 becomes 03:00. What is in the gap comes right after it, on that day alone.
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T00:00Z",
            ["03-28 02:30+0100", "03-29 03:00+0200", "03-30 02:30+0200"],
        ),
        ("0,30 2 * * *", "Europe/Berlin", "2026-03-29T00:00Z", ["03-29 03:00+0200", "03-30 02:00+0200"]),
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00Z", ["03-29 01:30+0100", "03-29 03:00+0200"]),
        # Berlin, 25 October 2026: 03:00 becomes 02:00. What names a time comes once, what goes by real time goes on.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", ["10-25 02:30+0200", "10-26 02:30+0100"]),
        (
            "*/30 * * * *",
            "Europe/Berlin",
            "2026-10-25T00:00Z",
            ["10-25 02:30+0200", "10-25 02:00+0100", "10-25 02:30+0100", "10-25 03:00+0100"],
        ),
        # New York, 8 March and 1 November 2026.
        ("15 2 * * *", "America/New_York", "2026-03-08T00:00Z", ["03-08 03:00-0400", "03-09 02:15-0400"]),
        ("15 1 * * *", "America/New_York", "2026-11-01T00:00Z", ["11-01 01:15-0400", "11-02 01:15-0500"]),
    ],
)
def test_cron_in_a_time_zone(cron: str, zone: str, begin: str, expected: list[str]) -> None:
    assert local(cron, zone, begin, len(expected)) == expected


def test_beginning_in_the_second_pass_of_an_hour_finds_no_time_that_is_past() -> None:
    """02:30 summer time is past at 02:15 winter time, though its name is still to come."""
    assert local("30 2 * * *", "Europe/Berlin", "2026-10-25T01:15Z", 1) == ["10-26 02:30+0100"]
    assert local("30 * * * *", "Europe/Berlin", "2026-10-25T01:15Z", 2) == ["10-25 02:30+0100", "10-25 03:30+0100"]
    assert local("*/15 * * * *", "Europe/Berlin", "2026-10-25T01:15Z", 1) == ["10-25 02:30+0100"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize("cron", ["30 2 * * *", "0,30 1-3 * * *", "*/20 * * * *", "15 */2 * * *", "0 12 * * 0"])
@given(days=st.floats(0, 730))
def test_wherever_one_begins_the_times_are_the_same(cron: str, zone: str, days: float) -> None:
    """A restart between two times finds the later one, at every moment of two years."""
    schedule = Schedule(cron=cron, time_zone=zone)
    begin = at("2026-01-01T00:00") + days * 86_400
    first, second, third = islice(times_after(schedule, begin, 0.0), 3)
    assert begin < first < second < third
    assert next(times_after(schedule, first, 0.0)) == second
    assert next(times_after(schedule, (first + second) / 2, 0.0)) == second
    assert next(times_after(schedule, second - 0.001, 0.0)) == second


def test_intervals_do_not_drift() -> None:
    schedule = Schedule(every_s=0.1 + 7)
    anchor = 1_700_000_000.0
    times = list(islice(times_after(schedule, anchor, anchor), 100_000))
    assert times[-1] == pytest.approx(anchor + 7.1 * 100_000, abs=0.001)
    assert next(times_after(schedule, times[500], anchor)) == times[501]


def test_start_and_end_bound_the_times() -> None:
    start, end = at("2026-01-01T12:00"), at("2026-01-01T14:00")
    hourly = Schedule(cron="0 * * * *", start_at=start, end_at=end)
    assert list(times_after(hourly, 0.0, 0.0)) == [start, start + 3600, end]
    assert list(times_after(hourly, end, 0.0)) == []
    every = Schedule(every_s=3600, start_at=start + 600, end_at=end)
    assert list(times_after(every, 0.0, anchor=5.0)) == [start + 600, start + 4200]


@pytest.mark.parametrize(
    ("catch_up", "window_s", "expected", "missed_count"),
    [
        ("none", 86_400, [], 5),
        ("latest", 86_400, ["05:00"], 4),
        ("all", 86_400, ["01:00", "02:00", "03:00", "04:00", "05:00"], 0),
        ("all", 2.6 * 3600, ["03:00", "04:00", "05:00"], 1),
        ("latest", 60, [], 1),
    ],
)
def test_what_was_missed_is_caught_up_as_asked(
    catch_up: Any, window_s: float, expected: list[str], missed_count: int
) -> None:
    schedule = Schedule(cron="0 * * * *", catch_up=catch_up, catch_up_window_s=window_s, overlap="allow")
    due = missed(schedule, "x", at("2026-01-01T00:30"), at("2026-01-01T05:30"), anchor=0.0, on_time_s=60.0)
    assert [datetime.fromtimestamp(time, UTC).strftime("%H:%M") for time in due.times] == expected
    assert due.missed >= min(missed_count, 1)
    if window_s > 10_000:
        assert due.missed == missed_count or catch_up == "none"


@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
def test_what_is_late_by_a_moment_is_on_time(catch_up: Any) -> None:
    schedule = Schedule(cron="0 * * * *", catch_up=catch_up, overlap="allow")
    due = missed(schedule, "x", at("2026-01-01T00:30"), at("2026-01-01T01:00") + 59, anchor=0.0, on_time_s=60.0)
    assert list(due.times) == [at("2026-01-01T01:00")]
    assert due.missed == 0


def test_years_of_seconds_are_caught_up_in_no_time() -> None:
    schedule = Schedule(every_s=1, catch_up="all", overlap="allow", catch_up_window_s=31 * 86_400)
    due = missed(schedule, "x", 0.0, 1e9, anchor=0.0, on_time_s=60.0)
    assert len(due.times) == CAUGHT_UP_MAX
    assert due.times[-1] == due.handled == 1e9


def test_jitter_is_the_same_for_the_same_time_and_within_its_bounds() -> None:
    schedule = Schedule(cron="0 * * * *", jitter_s=600)
    delays = [delay_of(schedule, "x", float(hour * 3600)) for hour in range(100)]
    assert delays == [delay_of(schedule, "x", float(hour * 3600)) for hour in range(100)]
    assert min(delays) >= 0
    assert max(delays) < 600
    assert len(set(delays)) > 90
    first = at("2026-01-01T01:00")
    assert (
        list(
            missed(
                schedule, "x", first - 60, first + delay_of(schedule, "x", first) - 0.01, anchor=0, on_time_s=60
            ).times
        )
        == []
    )
    assert list(
        missed(schedule, "x", first - 60, first + delay_of(schedule, "x", first), anchor=0, on_time_s=60).times
    ) == [first]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "one of cron and every_s"),
        ({"cron": "0 * * * *", "every_s": 5}, "one of cron and every_s"),
        ({"every_s": 0.5}, "every_s"),
        ({"every_s": 60, "time_zone": "Europe/Berlin"}, "time_zone belongs to cron"),
        ({"cron": "0 * * * *", "start_at": 10, "end_at": 5}, "end_at is before start_at"),
        ({"cron": "0 * * * *", "catch_up": "all"}, "catch_up all needs overlap"),
        ({"cron": "0 * * * *", "start_at": "2026-01-01T00:00"}, "zone"),
        ({"cron": "0 * * * *", "options": {"run_at": 5}}, "options.run_at"),
        ({"cron": "0 * * * *", "overlapp": "skip"}, "overlapp"),
    ],
)
def test_what_makes_no_schedule_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Schedule.model_validate(fields)


@pytest.mark.parametrize(
    ("cron", "zone", "said"),
    [
        ("0 25 * * *", "UTC", "cannot be read"),
        ("every day", "UTC", "has 2 fields"),
        ("0 0 0 * * *", "UTC", "has 6 fields"),
        ("", "UTC", "has 0 fields"),
        ("0 0 31 2 *", "UTC", "cannot be read|never comes"),
        ("0 0 * * *", "Europe/Berln", "no time zone"),
        ("0 0 * * *", "../etc/passwd", "no time zone"),
        ("0 0 * * *", "", "no time zone"),
        ("0 0 * * *", "Europe", "no time zone"),
    ],
)
def test_a_cron_expression_or_a_zone_that_means_nothing_is_refused(cron: str, zone: str, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        check_timing(cron, zone)


def test_times_in_ids() -> None:
    assert stamp(at("2026-01-31T08:00")) == "2026-01-31T08:00:00Z"
    assert stamp(at("2026-01-31T08:00") + 0.5) == "2026-01-31T08:00:00.500Z"
