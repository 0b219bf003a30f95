"""`llamactl status`: how the control plane stands, and what needs a person's attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.client import Client
    from llama_deploy.types import ServiceView


@click.command()
@with_settings
def status(settings: Settings) -> None:
    """How the control plane stands: where its data is, what runs, what waits, and for whom."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, iso_time
    from llama_deploy.cli.services import pause_advice, waiting_advice

    async def work(client: Client) -> tuple[dict[str, Any], list[ServiceView]]:
        return await client.status(), await client.list_services()

    document, services = with_client(settings, work)
    document["url"] = settings.server
    if isinstance(document.get("started_at"), float):
        document["started_at"] = iso_time(document["started_at"])
    printer = Printer(settings)
    printer.record(document, name=str(document.get("name", "")), text=lambda: _text(document, services))
    if printer.for_people:
        for view in services:
            if view.paused is not None:
                printer.progress(pause_advice(view.definition.service_name, view.paused))
            elif advice := waiting_advice(view):
                printer.progress(advice)
        if document.get("dead_letters"):
            printer.progress("llamactl queues dead   shows the steps that were given up")


def _text(document: dict[str, Any], services: list[ServiceView]) -> str:
    from llama_deploy.cli.output import fields

    store = document.get("store") or {}
    tasks = document.get("tasks") or {}
    dead = document.get("dead_letters") or {}
    counts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in tasks.items() if count) or "none yet"
    served = ", ".join(f"{view.definition.service_name} ({len(view.instances)})" for view in services) or "none yet"
    ready = "ready" if document.get("ready") else "not ready"
    return fields(
        {
            "name": document.get("name"),
            "url": document["url"],
            "state": ready if store.get("healthy", True) else "not ready: the store cannot be written",
            "since": document.get("started_at"),
            "data": store.get("location"),
            "tasks": counts,
            "services": served,
            "dead letters": ", ".join(f"{count} of {name}" for name, count in dead.items()),
        }
    )
