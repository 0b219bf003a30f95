"""`llamactl sessions`: which sessions there are, and the state that the tasks of one share."""

from __future__ import annotations

from typing import Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings


@click.group(cls=CommandGroup)
def sessions() -> None:
    """List the sessions and look into one."""


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


@sessions.command("get")
@click.argument("session_id")
@with_settings
def get_session(settings: Settings, session_id: str) -> None:
    """One session, with the state that its tasks share."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, document_of
    from llama_deploy.client import Client

    async def work(client: Client) -> dict[str, Any]:
        view = await client.get_session(session_id)
        return {**document_of(view), "state": await client.get_session_state(session_id)}

    Printer(settings).record(with_client(settings, work), name=session_id)
