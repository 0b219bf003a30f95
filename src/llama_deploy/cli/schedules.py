"""`llamactl schedules`: what is submitted again and again, when, and what a person can do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings
from llama_deploy.cli.task_options import DURATION, TIME, taken_options, with_task_options
from llama_deploy.cli.who import who

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llama_deploy.client import Client
    from llama_deploy.types.schedules import ScheduleView


@click.group(cls=CommandGroup)
def schedules() -> None:
    """Submit tasks at times: by cron expressions, or at intervals."""


@schedules.command("list")
@with_settings
def list_schedules(settings: Settings) -> None:
    """List schedules, when each comes next, and what became of its latest task."""
    from llama_deploy.cli.calls import with_client

    _table(settings, with_client(settings, lambda client: client.list_schedules()))


@schedules.command("get")
@click.argument("name")
@with_settings
def get_schedule(settings: Settings, name: str) -> None:
    """One schedule: what it submits, when, and how it stands."""
    from llama_deploy.cli.calls import with_client

    _show(settings, with_client(settings, lambda client: client.get_schedule(name)))


@schedules.command()
@click.argument("name")
@click.argument("service", required=False)
@click.option("--cron", metavar="EXPRESSION", help="Minute, hour, day of month, month, weekday; or @daily and such.")
@click.option("--every", "every_s", type=DURATION, metavar="DURATION", help="In the place of --cron: an interval.")
@click.option("--time-zone", metavar="ZONE", help="The zone that --cron is meant in, such as Europe/Berlin [UTC].")
@click.option("--start", "start_at", type=TIME, metavar="TIME", help="No time before it counts.")
@click.option("--end", "end_at", type=TIME, metavar="TIME", help="No time after it counts.")
@click.option("--jitter", "jitter_s", type=DURATION, metavar="DURATION", help="Submit up to so much later.")
@click.option(
    "--overlap",
    type=click.Choice(["skip", "queue", "allow", "cancel"]),
    help="When the task before has not ended [skip].",
)
@click.option("--catch-up", type=click.Choice(["none", "latest", "all"]), help="What was missed while down [latest].")
@click.option("--catch-up-window", "catch_up_window_s", type=DURATION, metavar="DURATION", help="How far back [1d].")
@click.option("-i", "--input", "input_json", metavar="JSON", help="The tasks' input as JSON.")
@click.option("-a", "--argument", "arguments", nargs=2, multiple=True, metavar="KEY VALUE", help="One argument of it.")
@click.option("--session", "session_id", metavar="ID", help="The tasks run in this session.")
@with_task_options(beginning=False)
@with_settings
def create(settings: Settings, name: str, **given: Any) -> None:
    """Create the schedule NAME, or replace it: tasks for SERVICE.

    The input is -i JSON, or -a KEY VALUE for each argument.
    """
    from llama_deploy.cli.calls import with_client

    _show(settings, with_client(settings, lambda client: _create(client, name, given)))


async def _create(client: Client, name: str, given: dict[str, Any]) -> ScheduleView:
    from llama_deploy.cli.run import input_of

    options = taken_options(given)
    input_json, arguments, service = given.pop("input_json"), given.pop("arguments"), given["service"]
    schedule = {key: value for key, value in given.items() if value is not None}
    found = await input_of(client, service or "", source=None, input_json=input_json, arguments=arguments)
    if found is not None:
        schedule["input"] = found
    if options:
        schedule["options"] = options
    return await client.put_schedule(name, schedule)


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_settings
def delete(settings: Settings, names: tuple[str, ...]) -> None:
    """Forget schedules; what is printed is how they stood. Their tasks stay."""
    _each(settings, names, lambda client, name: client.delete_schedule(name))


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--reason", metavar="TEXT", help="Why; it is shown with the schedule.")
@with_settings
def pause(settings: Settings, names: tuple[str, ...], reason: str | None) -> None:
    """Submit nothing of these schedules until they are resumed."""
    _each(settings, names, lambda client, name: client.pause_schedule(name, reason=reason, by=who()))


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_settings
def resume(settings: Settings, names: tuple[str, ...]) -> None:
    """Have paused schedules go on with their next time."""
    _each(settings, names, lambda client, name: client.resume_schedule(name))


@schedules.command()
@click.argument("name")
@with_settings
def trigger(settings: Settings, name: str) -> None:
    """Submit a task of the schedule now, and print its id."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    task_id = with_client(settings, lambda client: client.trigger_schedule(name))
    printer = Printer(settings)
    printer.record({"task_id": task_id}, name=task_id, text=lambda: task_id)
    printer.progress(f"Follow the task: llamactl tasks watch {task_id}")


@schedules.command("next")
@click.argument("name")
@click.option("--count", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many times.")
@with_settings
def next_times(settings: Settings, name: str, count: int) -> None:
    """The next times of a schedule, in its own time zone."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer

    times = with_client(settings, lambda client: client.next_times(name, count=count))
    items = [{"due_at": time.isoformat(sep=" "), "utc": time.timestamp()} for time in times]
    columns = [Column("due_at", "TIME")]
    Printer(settings).table(items, columns, name="due_at", empty="It has no further times.")


def _each(settings: Settings, names: tuple[str, ...], change: Callable[[Client, str], Awaitable[ScheduleView]]) -> None:
    """Change one schedule after the other and print how each stands; one that refuses does not keep back the others."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.errors import Category, LlamaDeployError

    changed: list[ScheduleView] = []
    refusals: list[LlamaDeployError] = []

    async def work(client: Client) -> None:
        for name in names:
            try:
                changed.append(await change(client, name))
            except LlamaDeployError as error:
                refusals.append(error)
                if error.category not in {Category.NOT_FOUND, Category.CONFLICT}:
                    return

    with_client(settings, work)
    if changed or not refusals:
        _table(settings, changed)
    for error in refusals[1:]:
        click.echo(error.render(), err=True)
    if refusals:
        raise refusals[0]


def _table(settings: Settings, views: list[ScheduleView]) -> None:
    from llama_deploy.cli.output import Column, Printer

    columns = [Column("name", "SCHEDULE"), Column("when", "WHEN"), Column("service", "SERVICE")]
    columns += [Column("state", "STATE"), Column("next_at", "NEXT"), Column("last_task_id", "LATEST TASK")]
    wide = [Column("submitted", "SUBMITTED"), Column("skipped", "SKIPPED"), Column("missed", "MISSED")]
    wide += [Column("last_error", "LAST ERROR")]
    items = [_document(view) for view in views]
    Printer(settings).table(items, columns, wide=wide, name="name", empty="No schedules.")


def _show(settings: Settings, view: ScheduleView) -> None:
    from llama_deploy.cli.output import Printer, fields

    document = _document(view)
    Printer(settings).record(document, name=view.name, text=lambda: fields(document))


def _document(view: ScheduleView) -> dict[str, Any]:
    """A schedule as one flat document: what it submits, when, and how it stands."""
    from llama_deploy.cli.output import document_of, duration

    schedule = view.schedule
    when = f"every {duration(schedule.every_s)}" if schedule.every_s is not None else f"{schedule.cron}"
    if schedule.time_zone != "UTC":
        when += f" {schedule.time_zone}"
    state = "paused" if view.paused else "running" if view.running else "waits" if view.next_at else "over"
    asked = schedule.model_dump(mode="json", exclude_defaults=True)
    rest = document_of(view, without={"schedule", "name"})
    return {"name": view.name, "when": when, "state": state, "service": schedule.service, **rest, "schedule": asked}
