"""`llamactl schedules`, against a real control plane."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.cli.conftest import Llamactl

from llama_deploy.cli.who import who
from llama_deploy.client import SyncClient

FAR = "0 0 1 1 *"


@pytest.fixture(autouse=True)
def clean(server: str) -> Iterator[None]:
    """No schedule outlives its test."""
    yield
    with SyncClient(server) as client:
        for view in client.list_schedules():
            client.delete_schedule(view.name)


def test_a_schedule_from_its_creation_to_its_end(ctl: Llamactl) -> None:
    assert ctl("schedules", "list").err == "No schedules.\n"
    flags = ["--cron", FAR, "--time-zone", "Europe/Berlin", "-a", "text", "x", "--retries", "2", "--overlap", "queue"]
    ran = ctl("schedules", "create", "yearly", "shout", *flags)
    assert ran.code == 0
    assert "0 0 1 1 * Europe/Berlin" in ran.out
    listed = ctl("schedules", "list")
    assert "yearly" in listed.out
    assert "waits" in listed.out
    document = json.loads(ctl("schedules", "get", "yearly", "-o", "json").out)
    assert document["schedule"]["input"] == {"text": "x"}
    assert document["schedule"]["options"]["retry"] == {"max_retries": 2}
    assert document["schedule"]["overlap"] == "queue"
    assert document["next_at"].endswith("-12-31T23:00:00.000Z")
    times = ctl("schedules", "next", "yearly", "--count", "2").out
    assert times.count("-01-01 00:00:00+01:00") == 2
    task_id = ctl("schedules", "trigger", "yearly").out.strip()
    assert ctl("tasks", "watch", task_id).out.strip().endswith("X")
    assert task_id in ctl("tasks", "list", "origin:schedule:yearly", "-o", "name").out
    ran = ctl("schedules", "pause", "yearly", "--reason", "holidays")
    assert "paused" in ran.out
    assert f"by {who()}: holidays" in ctl("schedules", "get", "yearly").out
    assert "waits" in ctl("schedules", "resume", "yearly").out
    assert ctl("schedules", "delete", "yearly").code == 0
    assert ctl("schedules", "get", "yearly").code == 4


def test_an_interval_submits(ctl: Llamactl, server: str) -> None:
    assert ctl("schedules", "create", "often", "count", "--every", "1s", "-a", "to", "1").code == 0
    with SyncClient(server) as client:
        while (view := client.get_schedule("often")).last_task_id is None:
            assert view.last_error == ""
        assert client.result(view.last_task_id) is not None
    assert "every 1.0 s" in ctl("schedules", "list").out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give one of cron and every_s"),
        (["--cron", "0 25 * * *"], "cannot be read"),
        (["--cron", FAR, "--time-zone", "Mars/Olympus"], "there is no time zone"),
        (["--every", "5s", "--cron", FAR], "give one of cron and every_s"),
        (["--cron", FAR, "--catch-up", "all"], "needs overlap"),
        (["--every", "now"], "is no span of time"),
    ],
)
def test_what_makes_no_schedule_is_refused(ctl: Llamactl, flags: list[str], said: str) -> None:
    ran = ctl("schedules", "create", "s", "shout", *flags)
    assert ran.code == 2
    assert said in ran.err
    assert ctl("schedules", "list", "-o", "name").out == ""


@pytest.mark.parametrize("command", ["get", "delete", "pause", "resume", "trigger", "next"])
def test_a_schedule_that_there_is_not(ctl: Llamactl, command: str) -> None:
    ran = ctl("schedules", command, "never")
    assert ran.code == 4
    assert "there is no schedule 'never'" in ran.err


def test_one_that_there_is_not_keeps_no_other_one_from_being_changed(ctl: Llamactl) -> None:
    assert ctl("schedules", "create", "s", "shout", "--cron", FAR).code == 0
    ran = ctl("schedules", "pause", "never", "s")
    assert ran.code == 4
    assert "paused" in ran.out
    ran = ctl("schedules", "delete", "never", "s", "nor")
    assert (ran.code, ran.err.count("there is no schedule")) == (4, 2)
    assert ctl("schedules", "list", "-o", "name").out == ""
