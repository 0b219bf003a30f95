"""`llamactl queues`: what waits for each service."""

from __future__ import annotations

from typing import Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings


@click.group(cls=CommandGroup)
def queues() -> None:
    """See what waits for each service."""


@queues.command("list")
@with_settings
def list_queues(settings: Settings) -> None:
    """List what waits for each service that was ever registered."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of

    views = with_client(settings, lambda client: client.list_queues())
    columns = [Column("name", "QUEUE"), Column("state", "STATE"), Column("waiting", "WAITING")]
    columns += [Column("oldest_waiting_s", "OLDEST", _age), Column("running", "RUNNING")]
    wide = [Column("instances", "INSTANCES")]
    documents = [document_of(view) for view in views]
    Printer(settings).table(documents, columns, wide=wide, name="name", empty="No services yet, so nothing waits.")


def _age(seconds: Any) -> str:
    from llama_deploy.cli.output import duration

    return duration(seconds) if isinstance(seconds, int | float) else "-"
