"""`llamactl services`: which services there are, who serves them, and how much work waits for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.types import ServiceView


@click.group(cls=CommandGroup)
def services() -> None:
    """List the services and their instances."""


@services.command("list")
@with_settings
def list_services(settings: Settings) -> None:
    """List the services that were ever registered."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer

    views = with_client(settings, lambda client: client.list_services())
    columns = [Column("name", "SERVICE"), Column("state", "STATE"), Column("instance_count", "INSTANCES")]
    columns += [Column("running", "RUNNING"), Column("waiting", "WAITING"), Column("oldest_waiting_s", "OLDEST", _age)]
    wide = [Column("kind", "KIND"), Column("description", "DESCRIPTION")]
    printer = Printer(settings)
    printer.table([_document(view) for view in views], columns, wide=wide, name="name", empty="No services yet.")
    for view in views:
        advice = waiting_advice(view)
        if advice and printer.for_people:
            printer.progress(advice)


@services.command("get")
@click.argument("name")
@with_settings
def get_service(settings: Settings, name: str) -> None:
    """One service: what it takes, what it answers, and its instances."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, fields

    view = with_client(settings, lambda client: client.get_service(name))
    document = _document(view)

    def text() -> str:
        shown = {key: value for key, value in document.items() if key not in {"definition", "instances"}}
        schemas = {"takes": view.definition.input_schema, "answers": view.definition.output_schema}
        parts = [fields(shown | schemas)]
        parts += [f"\ninstance\n{fields(instance)}" for instance in document["instances"]]
        return "\n".join(parts)

    printer = Printer(settings)
    printer.record(document, name=name, text=text)
    advice = waiting_advice(view)
    if advice and printer.for_people:
        printer.progress(advice)


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


def _age(seconds: Any) -> str:
    from llama_deploy.cli.output import duration

    return duration(seconds) if isinstance(seconds, int | float) else "-"
