"""`llamactl releases`: which release new tasks are bound to, and which ones still finish theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.types import ReleasesView


@click.group(cls=CommandGroup)
def releases() -> None:
    """Which release new tasks begin with, and which ones finish theirs.

    Services say which release they run: llamactl serve --release NAME. An API server does all of it by itself.
    """


@releases.command("list")
@with_settings
def list_releases(settings: Settings) -> None:
    """List the releases that tasks are bound to, the current one last."""
    from llama_deploy.cli.calls import with_client

    _show(settings, with_client(settings, lambda client: client.list_releases()))


@releases.command("use")
@click.argument("name")
@click.option(
    "--finish-within",
    "finish_within_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long tasks may take to finish on the release before [release_finish_within_s, ten minutes].",
)
@click.option("--now", is_flag=True, help="No time at all: their next steps go to NAME.")
@with_settings
def use(settings: Settings, name: str, finish_within_s: float | None, *, now: bool) -> None:
    """Have new tasks begin with NAME; those of the release before finish where they began."""
    from llama_deploy.cli.calls import with_client

    if now and finish_within_s:
        raise click.UsageError("--now and --finish-within SECONDS do not go together")
    within_s = 0.0 if now else finish_within_s
    _show(settings, with_client(settings, lambda client: client.use_release(name, finish_within_s=within_s)))


@releases.command("retire")
@click.argument("name")
@with_settings
def retire(settings: Settings, name: str) -> None:
    """Have what is left of the tasks of NAME go on with the current release."""
    from llama_deploy.cli.calls import with_client

    _show(settings, with_client(settings, lambda client: client.retire_release(name)))


def _show(settings: Settings, view: ReleasesView) -> None:
    from llama_deploy.cli.output import Column, Printer, iso_time

    items: list[dict[str, Any]] = []
    for one in view.items:
        document = one.model_dump(mode="json")
        for name in ("since", "until", "finish_by"):
            document[name] = iso_time(document[name]) if document[name] is not None else None
        items.append(document)
    columns = [Column("release", "RELEASE"), Column("state", "STATE"), Column("tasks", "TASKS")]
    columns += [Column("instances", "INSTANCES", _counts), Column("finish_by", "FINISH BY")]
    wide = [Column("since", "SINCE"), Column("until", "UNTIL")]
    Printer(settings).table(items, columns, wide=wide, name="release", empty="No release was named yet.")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{service} {count}" for service, count in counts.items()) or "none"
