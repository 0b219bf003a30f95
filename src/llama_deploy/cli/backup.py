"""`llamactl backup` and `llamactl restore`: a copy of a running control plane's store, and the way back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.state_stores.backups import BackupFacts


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Replace FILE if it exists.")
@with_settings
def backup(settings: Settings, file: Path, *, replace: bool) -> None:
    """Copy everything that is recorded to FILE, while work goes on.

    The copy is checked before it takes the name. Put it back with: llamactl restore FILE --store PATH
    """
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer
    from llama_deploy.errors import BackupError
    from llama_deploy.state_stores.backups import check_backup

    with_client(settings, lambda client: client.backup(file, replace=replace))
    try:
        facts = check_backup(file)
    except BackupError:
        file.rename(file.with_name(f"{file.name}.damaged"))
        raise
    Printer(settings).record({"file": str(file), **asdict(facts)}, name=str(file))


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--store", "place", metavar="PATH|URL", required=True, help="Where the store is to be.")
@click.option("--replace", is_flag=True, help="Replace the store that is there.")
@with_settings
def restore(settings: Settings, file: Path, place: str, *, replace: bool) -> None:
    """Make a store of a backup. Nobody may have the store open; no control plane is asked.

    A control plane that is started on it carries on with what was unfinished when the backup was made.
    """
    from llama_deploy.cli.output import Printer
    from llama_deploy.state_stores import backups
    from llama_deploy.state_stores.postgres_connection import is_postgres

    if is_postgres(place):
        facts, place = _into_database(file, place, replace=replace)
    else:
        facts = backups.restore(file, Path(place), replace=replace)
    printer = Printer(settings)
    printer.record({"store": place, **asdict(facts)}, name=place)
    printer.progress(f"llamactl serve FILE --store {place}   carries on with it")


def _into_database(file: Path, url: str, *, replace: bool) -> tuple[BackupFacts, str]:
    """Put a backup into a schema that holds nothing; returns the URL without a password, too."""
    import asyncio

    from llama_deploy.errors import SettingError
    from llama_deploy.state_stores.postgres import PostgresStore
    from llama_deploy.state_stores.postgres_copy import restore_into

    store = PostgresStore(url)
    if replace:
        raise SettingError(
            "--replace replaces files, no schema of a database",
            fix="drop the schema first, or name another one with ?schema=NAME",
        )
    return asyncio.run(restore_into(file, store)), store.location
