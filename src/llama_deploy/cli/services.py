"""`llamactl services`: which services there are, who serves them, and how much work waits for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.planes import beside, tell_missing, which_plane
from llama_deploy.cli.settings import Settings, with_settings
from llama_deploy.cli.who import who

if TYPE_CHECKING:
    from llama_deploy.client import Client
    from llama_deploy.types import PauseView, ServiceView


@click.group(cls=CommandGroup)
def services() -> None:
    """List the services and their instances; pause, limit and drain them."""


@services.command("list")
@which_plane
@with_settings
def list_services(settings: Settings, control_plane: str | None) -> None:
    """List the services that were ever registered."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer

    page = with_client(settings, lambda client: client.list_services_page(control_plane=control_plane))
    views = page.items
    columns = [Column("name", "SERVICE"), Column("state", "STATE"), Column("instance_count", "INSTANCES")]
    columns += [Column("running", "RUNNING"), Column("waiting", "WAITING"), Column("oldest_waiting_s", "OLDEST", age)]
    wide = [Column("kind", "KIND"), Column("limits", "LIMITS", limits_text), Column("description", "DESCRIPTION")]
    printer = Printer(settings)
    documents = [_document(view) for view in views]
    printer.table(documents, columns, wide=wide, name="name", empty="No services yet.", beside=beside(page.missing))
    tell_missing(printer, page.missing)
    for view in views:
        advice = waiting_advice(view)
        if view.paused is not None:
            advice = pause_advice(view.definition.service_name, view.paused)
        if advice and printer.for_people:
            printer.progress(advice)


@services.command("get")
@click.argument("name")
@which_plane
@with_settings
def get_service(settings: Settings, name: str, control_plane: str | None) -> None:
    """One service: what it takes, what it answers, and its instances."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, fields

    view = with_client(settings, lambda client: client.get_service(name, control_plane=control_plane))
    document = _document(view)

    def text() -> str:
        shown = {key: value for key, value in document.items() if key not in {"definition", "instances", "missing"}}
        shown["limits"] = limits_text(document["limits"])
        if view.limits_set is not None:
            shown["limits"] += f" (set by {view.limits_set.by or 'nobody known'}, {document['limits_set']['at']})"
        shown["held_back"] = held_back_text(view.held_back)
        shown["paused"] = pause_advice(name, view.paused) if view.paused is not None else None
        del shown["limits_set"]
        schemas = {"takes": view.definition.input_schema, "answers": view.definition.output_schema}
        parts = [fields(shown | schemas)]
        parts += [f"\ninstance\n{fields(instance)}" for instance in document["instances"]]
        return "\n".join(parts)

    printer = Printer(settings)
    printer.record(document, name=name, text=text)
    tell_missing(printer, view.missing)
    advice = waiting_advice(view)
    if advice and printer.for_people:
        printer.progress(advice)


@services.command("pause")
@click.argument("name")
@click.option("--reason", default="", help="Why; it is shown wherever something waits for it.")
@with_settings
def pause(settings: Settings, name: str, reason: str) -> None:
    """Hand out no step of service NAME any more: tasks are accepted and wait, what runs goes on."""
    change_pause(settings, name, paused=True, reason=reason)


@services.command("resume")
@click.argument("name")
@click.option("--reason", default="", help="Why; it stands in the log.")
@with_settings
def resume(settings: Settings, name: str, reason: str) -> None:
    """Have a paused service NAME go on."""
    change_pause(settings, name, paused=False, reason=reason)


@services.command("limit")
@click.argument("name")
@click.option("--running", metavar="N|none", help="Steps at once, over all instances.")
@click.option("--per-session", metavar="N|none", help="Steps at once of one session.")
@click.option("--per-key", metavar="N|none", help="Steps at once of one key.")
@click.option("--rate", metavar="N/SECONDS|none", help="Attempts that may begin within so many seconds.")
@click.option("--burst", type=click.IntRange(1), metavar="N", help="With --rate: how many of them at once.")
@click.option("--reset", is_flag=True, help="Have the limits count again that the service has by its definition.")
@with_settings
def limit(settings: Settings, name: str, *, burst: int | None, reset: bool, **given: str | None) -> None:
    """Limit service NAME from now on. What is not given stays as it is, `none` takes a limit away."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    changes = {field: value for field, value in ((FIELDS[key], value) for key, value in given.items()) if value}
    if reset == bool(changes):
        raise click.UsageError("Give limits to set, or --reset." if not reset else "--reset takes no other limit.")
    if burst is not None and changes.get("rate") in {None, "none"}:
        raise click.UsageError("--burst belongs to --rate N/SECONDS.")
    parsed = {field: _parsed(field, value, burst) for field, value in changes.items()}

    async def work(client: Client) -> ServiceView:
        if reset:
            return await client.reset_limits(name)
        view = await client.get_service(name)
        before = view.limits.model_dump(exclude_none=True) if view.limits is not None else {}
        limits = {field: value for field, value in (before | parsed).items() if value is not None}
        return await client.set_limits(name, limits, by=who())

    view = with_client(settings, work)
    printer = Printer(settings)
    printer.record(_document(view), name=name, text=lambda: f"{name}: {limits_text(_document(view)['limits'])}")


@services.command("drain")
@click.argument("name")
@click.argument("instance_id", metavar="INSTANCE")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="What it has not finished by then goes to others; by default it takes as long as it takes.",
)
@with_settings
def drain(settings: Settings, name: str, instance_id: str, timeout_s: float | None) -> None:
    """Have INSTANCE of service NAME finish what it holds, take nothing new, and leave with exit code 0.

    It leaves with all services that it serves. Where something keeps it running (`llamactl serve`), a new one follows.
    """
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, document_of

    view = with_client(settings, lambda client: client.drain_instance(name, instance_id, timeout_s=timeout_s))
    printer = Printer(settings)
    held = f"{view.running} step{'s' if view.running != 1 else ''}"
    text = f"{instance_id} finishes {held} and leaves" if view.running else f"{instance_id} leaves"
    printer.record(document_of(view), name=instance_id, text=lambda: text)


FIELDS = {
    "running": "running_max",
    "per_session": "running_max_per_session",
    "per_key": "running_max_per_key",
    "rate": "rate",
}
"""The options of `limit`, and what they set."""


def _parsed(field: str, text: str, burst: int | None) -> Any:
    """The value of an option of `limit`; None for `none`. Raises `click.UsageError`."""
    option = next(option for option, name in FIELDS.items() if name == field).replace("_", "-")
    if text == "none":
        return None
    try:
        if field != "rate":
            return int(text)
        count, _, seconds = text.partition("/")
        rate = {"count": int(count), "seconds": float(seconds.removesuffix("s") or 1)}
    except ValueError as error:
        form = "N/SECONDS, as in 100/60" if field == "rate" else "a whole number"
        raise click.UsageError(f"--{option} takes {form}, or none; not '{text}'.") from error
    return rate | ({"burst": burst} if burst is not None else {})


def change_pause(settings: Settings, name: str, *, paused: bool, reason: str) -> None:
    """Pause a service or have it go on, and say how it stands."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    async def work(client: Client) -> ServiceView:
        change = client.pause_service if paused else client.resume_service
        return await change(name, reason=reason, by=who())

    view = with_client(settings, work)
    printer = Printer(settings)
    waits = f"{view.waiting} waiting, {view.running} running"
    text = pause_advice(name, view.paused) if view.paused is not None else f"{name} goes on"
    printer.record(_document(view), name=name, text=lambda: f"{text} ({waits})")
    tell_missing(printer, view.missing)


def pause_advice(name: str, pause: PauseView) -> str:
    """Since when a service is paused, by whom and why."""
    from llama_deploy.cli.output import iso_time

    who = f" by {pause.by}" if pause.by else ""
    why = f": {pause.reason}" if pause.reason else ""
    return f"`{name}` is paused since {iso_time(pause.at)}{who}{why}"


def held_back_text(held_back: Any) -> str:
    """What keeps waiting steps from going, with how many it keeps."""
    return ", ".join(f"{what} ({count})" for what, count in (held_back or {}).items()) or "-"


def limits_text(limits: Any) -> str:
    """Limits in one line."""
    from llama_deploy.types import RateLimit

    if not limits:
        return "no limits"
    shown = [f"{option.replace('_', '-')} {limits[field]}" for option, field in FIELDS.items() if limits.get(field)]
    if limits.get("rate"):
        shown[-1] = f"rate {RateLimit.model_validate(limits['rate'])}"
    return ", ".join(shown)


def waiting_advice(view: ServiceView) -> str:
    """What to say where work waits and nobody is there to do it; nothing otherwise."""
    if view.instances or not view.waiting:
        return ""
    from llama_deploy.cli.output import duration

    tasks = "1 task waits" if view.waiting == 1 else f"{view.waiting} tasks wait"
    oldest = f", oldest {duration(view.oldest_waiting_s)}" if view.oldest_waiting_s is not None else ""
    return f"nobody is consuming `{view.definition.service_name}`; {tasks}{oldest}"


def _document(view: ServiceView) -> dict[str, Any]:
    """The view, with what a table shows of its definition and instances in front."""
    from llama_deploy.cli.output import document_of

    definition = view.definition
    return {
        "name": definition.service_name,
        "kind": definition.kind,
        "description": definition.description,
        "instance_count": len(view.instances),
        **document_of(view),
    }


def age(seconds: Any) -> str:
    """A span of time in a table."""
    from llama_deploy.cli.output import duration

    return duration(seconds) if isinstance(seconds, int | float) else "-"
