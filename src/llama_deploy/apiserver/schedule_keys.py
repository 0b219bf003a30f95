"""The key `schedules` of a deployment file: its spelling, and the schedules that it means.

What a field means, and what goes with what, is said by `Schedule` itself; a problem is told at the line that it is
about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from llama_deploy.apiserver.shapes import Choice, Free, Key, ListOf, Number, Record, Section, Table, Text
from llama_deploy.apiserver.wording import did_you_mean, listed
from llama_deploy.apiserver.yaml_source import Findings
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.options import SECONDS_MAX
from llama_deploy.types.schedules import WINDOW_S_MAX, Schedule

_SECONDS = Number(above=0, maximum=SECONDS_MAX)
_TIME = Text(r"\d{4}-\d\d-\d\d.*", "a date and time with its zone in quotes, such as '2030-01-31T08:00Z'")

RETRY_KEYS = Record(
    {
        "max-retries": Key(shape=Number(integer=True, minimum=0), doc="Attempts after the first one."),
        "initial-s": Key(shape=Number(minimum=0), doc="Seconds before the first retry."),
        "multiplier": Key(shape=Number(minimum=1), doc="Growth of the delay from one retry to the next."),
        "cap-s": Key(shape=Number(minimum=0), doc="The longest delay in seconds."),
        "jitter": Key(shape=Number(minimum=0, maximum=1), doc="Part of the delay that is random, 0 to 1."),
        "non-retryable": Key(
            shape=ListOf(Text()), doc="Classes of exceptions and codes of errors after which no attempt is made again."
        ),
        "when-exhausted": Key(
            shape=Choice(("fail", "pause")), doc="After the last attempt: fail, or pause the task until it is resumed."
        ),
    },
    "`retry`",
)

OPTION_KEYS = Record(
    {
        "retry": Key(shape=RETRY_KEYS, doc="How failed steps are tried again."),
        "queue-timeout-s": Key(shape=_SECONDS, doc="A step fails that nobody has taken for so many seconds."),
        "run-timeout-s": Key(shape=_SECONDS, doc="Seconds that one attempt of a step may take."),
        "heartbeat-timeout-s": Key(shape=_SECONDS, doc="Seconds that an attempt may go without a sign of life."),
        "total-timeout-s": Key(shape=_SECONDS, doc="The task fails when it takes longer."),
        "priority": Key(shape=Number(integer=True, minimum=0, maximum=9), doc="0 to 9; the higher goes first."),
        "key": Key(shape=Text(), doc="Whom the work is for: keys take turns."),
    },
    "`options`",
)

SCHEDULE_KEYS = Record(
    {
        "cron": Key(shape=Text(), doc="Minute, hour, day of month, month, day of week; or `@daily` and such."),
        "time-zone": Key(shape=Text(), doc="The zone that `cron` is meant in, such as Europe/Berlin; UTC by default."),
        "every-s": Key(shape=Number(minimum=1, maximum=SECONDS_MAX), doc="In the place of `cron`: an interval."),
        "start-at": Key(shape=_TIME, doc="No time before it counts."),
        "end-at": Key(shape=_TIME, doc="No time after it counts."),
        "jitter-s": Key(shape=Number(minimum=0, maximum=86_400), doc="Tasks are submitted up to so much later."),
        "overlap": Key(
            shape=Choice(("skip", "queue", "allow", "cancel")),
            doc="When the task before has not ended; `skip`.",
        ),
        "catch-up": Key(
            shape=Choice(("none", "latest", "all")), doc="Which of the times count that were missed while it was down."
        ),
        "catch-up-window-s": Key(
            shape=Number(minimum=0, maximum=WINDOW_S_MAX), doc="How long ago they may be; a day if left out."
        ),
        "service": Key(shape=Text(), doc="The service that the tasks are for."),
        "input": Key(shape=Free(), doc="The tasks' input: text, or a mapping of arguments."),
        "session-id": Key(shape=Text(), doc="The session that the tasks run in."),
        "metadata": Key(shape=Table(Text(), "label", r".+", "a word"), doc="The tasks' labels."),
        "options": Key(shape=OPTION_KEYS, doc="Deadlines, retries and priority of the tasks."),
    },
    "a schedule",
)


def schedules_of(
    section: Section | None, *, services: Iterable[str], default_service: str | None, findings: Findings
) -> dict[str, Schedule]:
    """The schedules that the file asks for; what means nothing is a finding."""
    if section is None:
        return {}
    known = set(services)
    found: dict[str, Schedule] = {}
    for name, given in section.given().items():
        service = given["service"]
        if service is not None and service not in known:
            hint = did_you_mean(service, known) or f"; the services are {listed(sorted(known))}"
            findings.problem(given.nodes["service"], f"there is no service `{service}`{hint}")
        elif service is None and default_service is None and len(known) != 1:
            findings.problem(given.node, f"schedule `{name}` needs the key `service`: there is no default service")
        schedule = _schedule(given, findings)
        if schedule is not None:
            found[name] = schedule
    return found


def _schedule(given: Section, findings: Findings) -> Schedule | None:
    from llama_deploy.control_plane.schedule_times import check_timing  # time zones: only where there are schedules

    try:
        schedule = Schedule.model_validate(_python_names(given))
    except ValidationError as error:
        for problem in error.errors():
            key = str(problem["loc"][0]).replace("_", "-") if problem["loc"] else ""
            said = problem["msg"].removeprefix("Value error, ")
            findings.problem(_node(given, key), _spelled(said))
        return None
    try:
        check_timing(schedule.cron, schedule.time_zone)
    except InvalidRequestError as error:
        key = "time-zone" if "time zone" in error.what else "cron"
        findings.problem(_node(given, key), str(error))
        return None
    return schedule


def _node(given: Section, key: str) -> yaml.Node:
    return given.nodes.get(key, given.node)


def _spelled(text: str) -> str:
    """A sentence about fields with the fields as the file spells them."""
    for name in Schedule.model_fields:
        text = text.replace(name, name.replace("_", "-"))
    return text


def _python_names(section: Section) -> Mapping[str, Any]:
    return {
        key.replace("-", "_"): _nested(key, value) if isinstance(value, Section) else value
        for key, value in section.given().items()
    }


def _nested(key: str, value: Section) -> Mapping[str, Any]:
    return value.given() if key == "metadata" else _python_names(value)
