"""`llamactl queues`: what waits for each service, why, and what an operator does about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli import dead_letters
from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.planes import beside, tell_missing, which_plane
from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.client import Client
    from llama_deploy.types import WaitingPage

PAGE_ITEMS = 1_000
"""Steps that come with one request."""
PEEK_ITEMS = 50
"""Steps that `peek` shows where nothing else is asked for."""


@click.group(cls=CommandGroup)
def queues() -> None:
    """See what waits for each service, and why."""


@queues.command("list")
@which_plane
@with_settings
def list_queues(settings: Settings, control_plane: str | None) -> None:
    """List what waits for each service that was ever registered, and what holds it back."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of
    from llama_deploy.cli.services import age, held_back_text, limits_text, pause_advice

    page = with_client(settings, lambda client: client.list_queues_page(control_plane=control_plane))
    views = page.items
    columns = [Column("name", "QUEUE"), Column("state", "STATE"), Column("waiting", "WAITING")]
    columns += [Column("oldest_waiting_s", "OLDEST", age), Column("running", "RUNNING")]
    columns += [Column("held_back", "HELD BACK BY", held_back_text)]
    wide = [Column("instances", "INSTANCES"), Column("answered", "ANSWERED"), Column("limits", "LIMITS", limits_text)]
    printer = Printer(settings)
    documents = [document_of(view) for view in views]
    empty = "No services yet, so nothing waits."
    printer.table(documents, columns, wide=wide, name="name", empty=empty, beside=beside(page.missing))
    tell_missing(printer, page.missing)
    for view in views:
        if view.paused is not None and printer.for_people:
            printer.progress(pause_advice(view.name, view.paused))


@queues.command("peek")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), default=PEEK_ITEMS, show_default=True, help="Show at most so many.")
@which_plane
@with_settings
def peek(settings: Settings, name: str, limit: int, control_plane: str | None) -> None:
    """What waits for service NAME, in the order in which it would go, each with the reason why it waits."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of
    from llama_deploy.cli.services import age

    async def work(client: Client) -> WaitingPage:
        found = await client.list_waiting_page(name, limit=min(limit, PAGE_ITEMS), control_plane=control_plane)
        after = found.next
        while after is not None and len(found.items) < limit:
            left = min(limit - len(found.items), PAGE_ITEMS)
            page = await client.list_waiting_page(name, after=after, limit=left, control_plane=control_plane)
            found.items += page.items
            after = page.next
        return found

    found = with_client(settings, work)
    columns = [Column("place", "PLACE"), Column("step_id", "STEP"), Column("priority", "PRIORITY")]
    columns += [Column("key", "KEY", _or_dash), Column("waiting_s", "WAITS", age), Column("reason", "FOR")]
    wide = [Column("session_id", "SESSION"), Column("attempt", "ATTEMPT"), Column("control_plane", "CONTROL PLANE")]
    documents = [document_of(step) for step in found.items]
    printer = Printer(settings)
    empty = f"Nothing waits for {name}."
    printer.table(documents, columns, wide=wide, name="step_id", empty=empty, beside=beside(found.missing))
    tell_missing(printer, found.missing)


@queues.command("pause")
@click.argument("name")
@click.option("--reason", default="", help="Why; it is shown wherever something waits for it.")
@with_settings
def pause(settings: Settings, name: str, reason: str) -> None:
    """Hand out no step of service NAME any more: the same as `llamactl services pause`."""
    from llama_deploy.cli.services import change_pause

    change_pause(settings, name, paused=True, reason=reason)


@queues.command("resume")
@click.argument("name")
@click.option("--reason", default="", help="Why; it stands in the log.")
@with_settings
def resume(settings: Settings, name: str, reason: str) -> None:
    """Have service NAME go on: the same as `llamactl services resume`."""
    from llama_deploy.cli.services import change_pause

    change_pause(settings, name, paused=False, reason=reason)


def _or_dash(value: Any) -> str:
    return str(value) if value is not None else "-"


for _command in dead_letters.COMMANDS:
    queues.add_command(_command)
