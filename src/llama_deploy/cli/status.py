"""`llamactl status`: how the control plane stands, and what needs a person's attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.planes import tell_missing, which_plane
from llama_deploy.cli.settings import Settings, with_settings
from llama_deploy.errors import InvalidRequestError

if TYPE_CHECKING:
    from llama_deploy.client import Client
    from llama_deploy.types import ServiceView


ANSWER_TIMEOUT_S = 5.0
"""How long it may go without an answer, where `-t` says nothing: a control plane that works answers at once."""


@click.command()
@which_plane
@with_settings
def status(settings: Settings, control_plane: str | None) -> None:
    """How the control plane stands: where its data is, what runs, what waits, and for whom."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, iso_time
    from llama_deploy.cli.services import pause_advice, waiting_advice
    from llama_deploy.types import MissingPlane

    async def work(client: Client) -> tuple[dict[str, Any], list[ServiceView]]:
        document = await client.status(control_plane=control_plane)
        return document, await client.list_services(control_plane=control_plane)

    try:
        document, services = with_client(settings, work, timeout_s=ANSWER_TIMEOUT_S)
    except InvalidRequestError as error:
        if "no route" not in error.what:
            raise
        _of_api_server(settings)  # the published default, which knows of deployments
        return
    document["url"] = settings.server
    if isinstance(document.get("started_at"), float):
        document["started_at"] = iso_time(document["started_at"])
    printer = Printer(settings)
    printer.record(document, name=str(document.get("name", "")), text=lambda: _text(document, services))
    tell_missing(printer, [MissingPlane.model_validate(one) for one in document.get("missing") or ()])
    if printer.for_people:
        for view in services:
            if view.paused is not None:
                printer.progress(pause_advice(view.definition.service_name, view.paused))
            elif advice := waiting_advice(view):
                printer.progress(advice)
        if document.get("dead_letters"):
            printer.progress("llamactl queues dead   shows the steps that were given up")


def _of_api_server(settings: Settings) -> None:
    """How the deployments of an API server stand."""
    from dataclasses import replace

    from llama_deploy.cli.api_calls import document_of_deployment, services_text, with_deployments
    from llama_deploy.cli.output import Column, Printer

    found = with_deployments(replace(settings, server_said=True), lambda client: client.list_deployments())
    columns = [Column("name", "DEPLOYMENT"), Column("state", "STATE"), Column("version", "VERSION")]
    columns += [Column("services", "SERVICES", services_text)]
    items = [document_of_deployment(view) for view in found]
    Printer(settings).table(items, columns, name="name", empty="No deployments yet: llamactl deploy FILE")


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
            **_leadership(document.get("leadership"), document.get("control_planes") or []),
            "carrier": _carrier(document.get("queue") or {}),
            "tasks": counts,
            "services": served,
            "dead letters": ", ".join(f"{count} of {name}" for name, count in dead.items()),
        }
    )


def _leadership(shared: dict[str, Any] | None, planes: list[dict[str, Any]]) -> dict[str, str]:
    """Which control planes share the store, and how it went; nothing where there is one."""
    if shared is None:
        return {}
    known = {plane["name"]: plane for plane in planes}
    members = []
    for member in shared["members"]:
        here = " (this one)" if member["name"] == shared["name"] else ""
        epochs = member["epochs"]
        epoch = (
            f", epochs {min(epochs)} to {max(epochs)}"
            if len(set(epochs)) > 1
            else "".join(f", epoch {one}" for one in set(epochs))
        )
        plane = known.get(member["name"])
        work = f", {plane['unfinished_in_memory']} unfinished, {plane['clients']} clients" if plane is not None else ""
        members.append(f"{member['url'] or member['name']}{here}: {len(member['shards'])} shards{epoch}{work}")
    if shared["unled"]:
        members.append(f"nobody leads {shared['unled']} shards at the moment")
    added = {name: sum(plane.get(name, 0) for plane in planes or [shared]) for name in _COUNTED}
    counts = [f"{added[name]} {words}" for name, words in _COUNTED.items() if name != "commits_refused" or added[name]]
    return {"control planes": "\n".join(members), "shards": ", ".join(counts)}


_COUNTED = {
    "takeovers": "taken over from others that were gone",
    "handed_over": "handed over",
    "lost": "lost to others",
    "commits_refused": "changes refused",
}


def _carrier(queue: dict[str, Any]) -> str | None:
    """The carrier in words; nothing for the queue that is built in."""
    if queue.get("kind", "simple") == "simple":
        return None
    words = [f"{queue['kind']} at {queue['location']}", "connected" if queue["connected"] else "not connected"]
    words.append(f"{queue['waiting']} waiting")
    words += [f"{queue[name]} {name}" for name in ("unsent", "reconnects", "losses", "unreadable") if queue[name]]
    if not queue["connected"] and queue["error"]:
        words.append(queue["error"])
    return ", ".join(words)
