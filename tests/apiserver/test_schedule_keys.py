"""The key `schedules` of a deployment file, and of a `Deployment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support import eventually

from llama_deploy import Deployment, service
from llama_deploy.apiserver.deployment_file import parse_deployment_file
from llama_deploy.errors import DeploymentFileError, InvalidRequestError, SettingError
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy, TaskOptions
from llama_deploy.types.schedules import Schedule

HEAD = "name: demo\nservices:\n  shout: {import-path: 'services:shout'}\n"


def test_every_key_is_read() -> None:
    text = (
        HEAD
        + """\
schedules:
  nightly:
    cron: "0 3 * * *"
    time-zone: Europe/Berlin
    start-at: "2026-01-01T00:00Z"
    end-at: "2027-01-01T00:00:00+01:00"
    jitter-s: 30
    overlap: queue
    catch-up: all
    catch-up-window-s: 7200
    service: shout
    input: {text: good night}
    session-id: night
    metadata: {some-team: a}
    options:
      queue-timeout-s: 60
      run-timeout-s: 50
      heartbeat-timeout-s: 5
      total-timeout-s: 600
      priority: 7
      key: me
      retry: {max-retries: 5, non-retryable: [ValueError], when-exhausted: pause}
  often:
    every-s: 90
"""
    )
    file = parse_deployment_file(text.encode(), Path("deployment.yml"))
    assert file.schedules == {
        "nightly": Schedule(
            cron="0 3 * * *",
            time_zone="Europe/Berlin",
            start_at=1767225600.0,
            end_at=1798758000.0,
            jitter_s=30,
            overlap="queue",
            catch_up="all",
            catch_up_window_s=7200,
            service="shout",
            input={"text": "good night"},
            session_id="night",
            metadata={"some-team": "a"},
            options=TaskOptions(
                queue_timeout_s=60,
                run_timeout_s=50,
                heartbeat_timeout_s=5,
                total_timeout_s=600,
                priority=7,
                key="me",
                retry=RetryPolicy(max_retries=5, non_retryable=("ValueError",), when_exhausted="pause"),
            ),
        ),
        "often": Schedule(every_s=90),
    }


@pytest.mark.parametrize(
    ("schedule", "place", "said"),
    [
        ("{service: shout}", "5:6", "give one of cron and every-s"),
        ("{cron: '0 25 * * *'}", "5:13", "cannot be read"),
        ("{cron: '0 3 * * *', time-zone: Mars}", "5:37", "there is no time zone 'Mars'"),
        ("{every-s: 0.5}", "5:16", "a number from 1 to"),
        ("{every-s: 60, time-zone: Europe/Berlin}", "5:6", "time-zone belongs to cron"),
        ("{every-s: 60, catch-up: all}", "5:6", "catch-up all needs overlap"),
        ("{every-s: 60, overlap: skipp}", "5:29", "skip"),
        ("{every-s: 60, service: shot}", "5:29", "did you mean `shout`"),
        ("{every-s: 60, evry-s: 60}", "5:20", "unknown key `evry-s`"),
        ("{every-s: 60, start-at: '2026-01-01T00:00'}", "5:30", "give the time's zone"),
        ("{every-s: 60, start-at: 2026-01-01T00:00:00Z}", "5:30", "quote it"),
        ("{every-s: 60, options: {priority: 10}}", "5:40", "a whole number from 0 to 9"),
    ],
)
def test_what_is_wrong_is_told_at_its_place(schedule: str, place: str, said: str) -> None:
    text = f"{HEAD}schedules:\n  s: {schedule}\n"
    with pytest.raises(DeploymentFileError) as refused:
        parse_deployment_file(text.encode(), Path("deployment.yml"))
    assert f"deployment.yml:{place}: " in refused.value.why
    assert said in refused.value.why


def test_a_schedule_without_a_service_needs_a_default_one() -> None:
    text = HEAD + "  other: {import-path: 'services:other'}\nschedules:\n  s: {every-s: 60}\n"
    with pytest.raises(DeploymentFileError, match="there is no default service"):
        parse_deployment_file(text.encode(), Path("deployment.yml"))
    parse_deployment_file((text + "default-service: other\n").encode(), Path("deployment.yml"))


@service
async def note(text: str) -> str:
    """The text."""
    return text


async def test_an_embedded_deployment_has_schedules() -> None:
    clock = ManualClock()
    hourly = {"every_s": 3600, "input": {"text": "x"}}
    async with Deployment(
        [note], store=":memory:", clock=clock, quiet=True, schedules={"hourly": hourly}
    ) as deployment:
        view = await deployment.client.get_schedule("hourly")
        assert view.from_file
        assert view.next_at is not None
        clock.advance(view.next_at - clock.now())

        async def submitted() -> Any:
            return (await deployment.client.get_schedule("hourly")).last_task_id

        assert await deployment.client.result(await eventually(submitted)) == "x"


async def test_a_deployment_refuses_schedules_that_mean_nothing() -> None:
    with pytest.raises(SettingError, match="does not fit"):
        Deployment([note], store=":memory:", schedules={"s": {"every": 5}})
    with pytest.raises(InvalidRequestError, match="cron"):
        async with Deployment([note], store=":memory:", quiet=True, schedules={"s": {"cron": "x"}}):
            pass
