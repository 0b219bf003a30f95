"""`llamactl sessions`: which sessions there are, the state that the tasks of one share, and erasing one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.types import ErasureView


@click.group(cls=CommandGroup)
def sessions() -> None:
    """List the sessions, look into one, erase one."""


@sessions.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Sessions on the page.")
@click.option("--cursor", metavar="CURSOR", help="Where the page starts: `next` of the one before it.")
@with_settings
def list_sessions(settings: Settings, limit: int, cursor: str | None) -> None:
    """List sessions, newest first."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of

    page = with_client(settings, lambda client: client.list_sessions_page(limit=limit, cursor=cursor))
    columns = [Column("session_id", "SESSION"), Column("task_count", "TASKS"), Column("open_task_count", "OPEN")]
    columns += [Column("created_at", "CREATED")]
    wide = [Column("updated_at", "UPDATED"), Column("current_task_id", "LAST TASK")]
    items = [document_of(view) for view in page.items]
    Printer(settings).table(items, columns, wide=wide, name="session_id", cursor=page.next, empty="No sessions yet.")


@sessions.command("create")
@click.argument("session_id", required=False)
@click.option("-d", "--deployment", metavar="NAME", help="In this deployment of the API server.")
@with_settings
def create_session(settings: Settings, session_id: str | None, deployment: str | None) -> None:
    """Create a session; one that exists is shown as it is."""
    from llama_deploy.cli.api_calls import at_deployment
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, document_of

    settings = at_deployment(settings, deployment) if deployment is not None else settings
    view = with_client(settings, lambda client: client.create_session(session_id))
    Printer(settings).record(document_of(view), name=view.session_id)


@sessions.command("get")
@click.argument("session_id")
@with_settings
def get_session(settings: Settings, session_id: str) -> None:
    """One session, with the state that its tasks share and what services remember of it."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, document_of
    from llama_deploy.client import Client

    async def work(client: Client) -> dict[str, Any]:
        view = await client.get_session(session_id)
        state = await client.get_session_state(session_id)
        return {**document_of(view), "state": state, "memory": await client.get_session_memory(session_id)}

    Printer(settings).record(with_client(settings, work), name=session_id)


@sessions.command("forget")
@click.argument("session_id")
@click.option("--service", metavar="NAME", help="What this service remembers, and no other one.")
@with_settings
def forget_session(settings: Settings, session_id: str, *, service: str | None) -> None:
    """Clear what services remember of a session; its tasks and its state stay."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    names = with_client(settings, lambda client: client.clear_session_memory(session_id, service))
    Printer(settings).record({"session_id": session_id, "cleared": names}, name=session_id)


@sessions.command("erase")
@click.argument("session_id")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--by", metavar="NAME", help="Who asks for it, for the record [the login name].")
@with_settings
def erase_session(settings: Settings, session_id: str, *, dry_run: bool, yes: bool, by: str | None) -> None:
    """Erase a session: its tasks and what came of them, its state, the bytes in the store's files.

    What runs is canceled first. It cannot be undone; backups that were made before still have it.
    """
    import getpass

    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, document_of

    printer = Printer(settings)
    if not dry_run and not yes:
        found = with_client(settings, lambda client: client.erase_session(session_id, dry_run=True))
        if not sys.stdin.isatty():
            raise click.UsageError(f"{_what_goes(found)} would be erased for good; say --yes to do it")
        click.confirm(f"Erase {_what_goes(found)} for good?", abort=True, err=True)
    who = by if by is not None else getpass.getuser()
    view = with_client(settings, lambda client: client.erase_session(session_id, dry_run=dry_run, by=who))
    printer.record(document_of(view), name=session_id)
    if view.erased and not view.scrubbed:
        printer.progress("Its bytes are still in the store's files: a backup is being written. Erase it again later.")


def _what_goes(view: ErasureView) -> str:
    tasks = f"{view.tasks} task{'' if view.tasks == 1 else 's'} ({view.unfinished} unfinished)"
    return f"{tasks} and {view.state_keys} key{'' if view.state_keys == 1 else 's'} of session {view.session_id}"


@sessions.command("erasures")
@with_settings
def list_erasures(settings: Settings) -> None:
    """What was ever erased, by whom and how much; never content."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of

    found = with_client(settings, lambda client: client.list_erasures())
    columns = [Column("at", "AT"), Column("session_id", "SESSION"), Column("tasks", "TASKS"), Column("by", "BY")]
    wide = [Column("unfinished", "UNFINISHED"), Column("state_keys", "KEYS"), Column("scrubbed", "SCRUBBED")]
    items = [document_of(view) for view in found]
    Printer(settings).table(items, columns, wide=wide, name="session_id", cursor=None, empty="Nothing was erased yet.")
