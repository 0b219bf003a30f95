"""The flags that become a task's options, and pausing from the command line."""

from __future__ import annotations

import json

import pytest
from tests.cli.conftest import Llamactl, ask_clerk

from llama_deploy.cli.who import who
from llama_deploy.client import SyncClient


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--delay", "soon"], "'soon' is no span of time"),
        (["--delay", "-5"], "'-5' is no span of time"),
        (["--at", "tomorrow"], "'tomorrow' is no time"),
        (["--retries", "-1"], "-1 is not in the range"),
        (["--when-exhausted", "cry"], "'cry' is not one of"),
    ],
)
def test_what_is_no_option_is_refused(ctl: Llamactl, flags: list[str], said: str) -> None:
    ran = ctl("run", "shout", "-a", "text", "x", *flags)
    assert ran.code == 2
    assert said in ran.err


def test_a_time_that_is_too_long_is_refused_with_its_name(ctl: Llamactl) -> None:
    ran = ctl("run", "shout", "-a", "text", "x", "--total-timeout", "9999d")
    assert ran.code == 2
    assert "total_timeout_s" in ran.err


def test_a_task_that_begins_later_says_when(ctl: Llamactl, server: str) -> None:
    ran = ctl("run", "shout", "-a", "text", "x", "--delay", "2h", "--no-wait")
    task_id = ran.out.strip()
    assert ran.code == 0
    view = json.loads(ctl("tasks", "get", task_id, "-o", "json").out)
    assert view["state"] == "submitted"
    assert view["waiting_for"].startswith("its beginning, in 7")
    with SyncClient(server) as client:
        client.cancel(task_id)


def test_every_flag_reaches_the_task(ctl: Llamactl) -> None:
    flags = "--at 2026-01-01T00:00Z --total-timeout 1h --queue-timeout 30m --run-timeout 45 --heartbeat-timeout 2.5s"
    more = "--retries 7 --when-exhausted pause --priority 3 --key me"
    ran = ctl("run", "shout", "-a", "text", "x", *flags.split(), *more.split(), "-o", "json")
    assert ran.code == 0
    task_id = json.loads(ran.out)["task_id"]
    first = json.loads(ctl("tasks", "watch", task_id, "-o", "jsonl").out.splitlines()[0])
    sent = first["messages"][0]["data"]["task"]["options"]
    asked = {name: value for name, value in sent.items() if value is not None and name != "retry"}
    assert asked == {
        "run_at": 1767225600.0,
        "total_timeout_s": 3600.0,
        "queue_timeout_s": 1800.0,
        "run_timeout_s": 45.0,
        "heartbeat_timeout_s": 2.5,
        "priority": 3,
        "key": "me",
    }
    assert (sent["retry"]["max_retries"], sent["retry"]["when_exhausted"]) == (7, "pause")


def test_a_task_ends_at_its_deadline(ctl: Llamactl) -> None:
    ran = ctl("run", "slow", "--total-timeout", "200ms")
    assert ran.code == 1
    assert "had not ended 0.2 s after its beginning" in ran.err


def test_a_step_that_nobody_takes_fails(ctl: Llamactl) -> None:
    ran = ctl("run", "nobody-here", "--wait-for-service", "--queue-timeout", "200ms")
    assert ran.code == 1
    assert "QueueTimeoutError" in ran.err


def test_tasks_are_paused_and_go_on(ctl: Llamactl, server: str) -> None:
    task_id = ask_clerk(server)
    ran = ctl("tasks", "pause", task_id, "--reason", "lunch")
    assert ran.code == 0
    assert f"somebody to resume it (paused by {who()}: lunch)" in ran.out
    assert ctl("tasks", "pause", task_id).code == 0
    assert json.loads(ctl("tasks", "get", task_id, "-o", "json").out)["paused"] is True
    assert ctl("tasks", "resume", task_id).code == 0
    told = ctl("tasks", "get", task_id).out
    assert f"paused by {who()}: lunch" in told
    assert f"resumed by {who()}" in told
    with SyncClient(server) as client:
        client.cancel(task_id)
    assert ctl("tasks", "resume", task_id).code == 5
    assert ctl("tasks", "pause", "never").code == 4
