"""`llamactl queues dead`, `redrive` and `purge`: steps that were given up, and what a person does about them."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.settings import Settings, with_settings
from llama_deploy.cli.task_options import Duration

if TYPE_CHECKING:
    from llama_deploy.client import Client
    from llama_deploy.types.control import DeadLetterAnswer

Change = Callable[["Client", str], Awaitable[Any]]
"""Does it to the letter of one step; returns the task in which it was sent again."""


@click.command("dead")
@click.argument("name", required=False)
@click.option("--step", "step_id", metavar="STEP_ID", help="One of them: its message, its attempts.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Letters on the page.")
@click.option("--cursor", metavar="CURSOR", help="Where the page starts: `next` of the one before it.")
@with_settings
def dead(settings: Settings, name: str | None, step_id: str | None, limit: int, cursor: str | None) -> None:
    """List the steps that were given up, of service NAME or of all, newest first."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of, fields

    printer = Printer(settings)
    if step_id is not None:
        detail = document_of(with_client(settings, lambda client: client.get_dead(step_id)))
        text = {**detail["letter"], "task_state": detail["task_state"], "message": detail["message"]}
        printer.record(detail, name=step_id, text=lambda: fields(text))
        return
    page = with_client(settings, lambda client: client.list_dead(service=name, limit=limit, cursor=cursor))
    columns = [Column("step_id", "STEP"), Column("service", "SERVICE"), Column("at", "AT"), Column("code", "CODE")]
    columns += [Column("redriven", "SENT AGAIN IN"), Column("error", "ERROR")]
    items = [document_of(view) for view in page.items]
    printer.table(items, columns, name="step_id", cursor=page.next, empty="Nothing was given up.")


CHOICE = (
    click.argument("step_ids", nargs=-1, metavar="[STEP_ID]..."),
    click.option("--service", metavar="NAME", help="All of this service."),
    click.option("--error", "code", metavar="CODE", help="All whose last error has this code."),
    click.option(
        "--older-than", "older_than_s", type=Duration(), metavar="AGE", help="All that are older: 30s, 2h, 7d."
    ),
    click.option("--all", "everything", is_flag=True, help="All."),
    click.option("--dry-run", is_flag=True, help="Only say how many there are."),
    click.option("--yes", is_flag=True, help="Do it without asking."),
)


def _choice(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(CHOICE):
        command = option(command)
    return command


@click.command()
@_choice
@with_settings
def redrive(settings: Settings, **options: Any) -> None:
    """Send steps again that were given up: those named, or all that fit.

    The task goes on from just before the failure, as a new one; a task that paused because of it goes on itself.
    """

    async def one(client: Client, step_id: str) -> str:
        return (await client.redrive(step_id)).task_id

    _act(settings, "Redrive", one, "redrive_all", **options)


@click.command()
@_choice
@with_settings
def purge(settings: Settings, **options: Any) -> None:
    """Remove dead letters for good, those named or all that fit; their tasks stay."""

    async def one(client: Client, step_id: str) -> None:
        await client.purge(step_id)

    _act(settings, "Purge", one, "purge_all", **options)


COMMANDS = (dead, redrive, purge)


def _act(
    settings: Settings,
    word: str,
    one: Change,
    all_of_them: str,
    *,
    step_ids: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    everything: bool,
    **where: Any,
) -> None:
    """Do it to the letters that are named, or count those that fit, ask, and do it to all of them."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    printer = Printer(settings)
    if everything:
        where["older_than_s"] = where["older_than_s"] or 0.0
    chosen = any(value is not None for value in where.values())
    if bool(step_ids) == chosen:
        raise click.UsageError("Name steps, or choose them with --service, --error, --older-than or --all.")
    if step_ids:
        _each(settings, step_ids, one)
        return

    async def page(client: Client, *, dry: bool) -> DeadLetterAnswer:
        found: DeadLetterAnswer = await getattr(client, all_of_them)(**where, dry_run=dry, limit=1_000)
        return found

    found = with_client(settings, lambda client: page(client, dry=True))
    count = f"{found.matched}{' or more' if found.more else ''} dead letter{'' if found.matched == 1 else 's'}"
    if dry_run or not found.matched:
        printer.record({"matched": found.matched, "more": found.more}, name=str(found.matched), text=lambda: count)
        return
    printer.progress(f"{count} match{'es' if found.matched == 1 else ''}")
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"--yes is needed to {word.lower()} {count} where nobody can be asked.")
        click.confirm(f"{word} {count}?", abort=True, err=True)
    answer = with_client(settings, lambda client: page(client, dry=False))
    if answer.more:
        printer.progress("There are more: the same command goes on.")
    _print(settings, [item.model_dump(exclude_none=True) for item in answer.items])


def _each(settings: Settings, step_ids: tuple[str, ...], one: Change) -> None:
    from llama_deploy.cli.calls import with_client
    from llama_deploy.errors import LlamaDeployError

    items: list[dict[str, Any]] = []

    async def work(client: Client) -> None:
        for step_id in step_ids:
            try:
                items.append({"step_id": step_id, "task_id": await one(client, step_id)})
            except LlamaDeployError as error:
                items.append({"step_id": step_id, "problem": error.to_problem()})

    with_client(settings, work)
    _print(settings, items)


def _print(settings: Settings, items: list[dict[str, Any]]) -> None:
    """What was done; the first refusal is raised, so that the exit code tells it."""
    from llama_deploy.cli.output import Column, Printer
    from llama_deploy.connections.problems import error_from_problem

    columns = [Column("step_id", "STEP")]
    if any(item.get("task_id") for item in items):
        columns.append(Column("task_id", "SENT AGAIN IN"))
    errors = [error_from_problem(item["problem"], status=409) for item in items if item.get("problem")]
    good = [item for item in items if not item.get("problem")]
    if good or not errors:
        Printer(settings).table(good, columns, name="step_id")
    for error in errors[1:]:
        click.echo(error.render(), err=True)
    if errors:
        raise errors[0]
