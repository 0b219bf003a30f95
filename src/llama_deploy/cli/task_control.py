"""`llamactl tasks cancel`, `pause`, `retry` and the like: what a person does about recorded tasks, one or many.

Tasks are named, or chosen by a filter; then their number is shown first, and somebody has to agree.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llama_deploy.cli.settings import Settings, with_settings
from llama_deploy.cli.who import who

if TYPE_CHECKING:
    from llama_deploy.cli.output import Printer
    from llama_deploy.client import Client
    from llama_deploy.types import TaskView
    from llama_deploy.types.control import BulkAction, BulkAnswer

Change = TypeVar("Change", bound=Callable[..., Any])

COMMANDS: list[click.Command] = []
"""What `llamactl tasks` has from here."""


REASON = click.option("--reason", metavar="TEXT", help="Why; it stands in the task's history.")
WAIT = click.option("--wait", is_flag=True, help="Wait for the new task's result; one task only.")
INPUT = click.option("--input", "input_json", metavar="JSON", help="Another input, of the task or of the step.")
DATA = click.option("--data", "data_json", metavar="JSON", help="Another message for the step: an object.")
CHOICE = (
    click.option("--limit", type=click.IntRange(1), metavar="COUNT", help="At most so many, the newest first."),
    click.option("--yes", is_flag=True, help="Do it without asking."),
    click.option("--dry-run", is_flag=True, help="Only say how many tasks match."),
    click.option("--filter", "filter_text", metavar="FILTER", help="All tasks that fit, as in `tasks list`."),
    click.argument("task_ids", nargs=-1, metavar="[TASK_ID]..."),
)


def _many(action: BulkAction, help_text: str, *options: Callable[..., Any]) -> Callable[[Change], Change]:
    """A command for tasks that are named or chosen by a filter; the function does it to one named task."""

    def decorate(function: Change) -> Change:
        def run(settings: Settings, task_ids: tuple[str, ...], **given: Any) -> None:
            chosen = {name: given.pop(name) for name in ("filter_text", "dry_run", "yes", "limit")}
            wait = given.pop("wait", False)
            if bool(task_ids) == (chosen["filter_text"] is not None):
                raise click.UsageError("Name tasks, or choose them with --filter.")
            if wait and len(task_ids) != 1:
                raise click.UsageError("--wait is for one named task.")
            if chosen["filter_text"] is not None:
                _act_on_all(settings, action, given, **chosen)
            elif chosen["dry_run"] or chosen["limit"] is not None:
                raise click.UsageError("--dry-run and --limit go with --filter.")
            elif wait:
                _wait_for_new(settings, task_ids[0], lambda client, task_id: function(client, task_id, **given))
            else:
                _change_each(settings, task_ids, lambda client, task_id: function(client, task_id, **given))

        command = with_settings(run)
        for option in (*reversed(options), *CHOICE):
            command = option(command)
        COMMANDS.append(click.command(action, help=help_text)(command))
        return function

    return decorate


@_many("cancel", "Cancel tasks. One that is canceled already stays as it is.", REASON)
def cancel(client: Client, task_id: str, *, reason: str | None) -> Awaitable[TaskView]:
    """Cancel one."""
    return client.cancel(task_id, reason=reason, by=who())


@_many("pause", "Hold tasks back: no step of them is handed out until they are resumed; what runs finishes.", REASON)
def pause(client: Client, task_id: str, *, reason: str | None) -> Awaitable[TaskView]:
    """Pause one."""
    return client.pause(task_id, reason=reason, by=who())


@_many("resume", "Have paused tasks go on.", REASON)
def resume(client: Client, task_id: str, *, reason: str | None) -> Awaitable[TaskView]:
    """Resume one."""
    return client.resume(task_id, reason=reason, by=who())


@_many("migrate", "Have the deployed version of their orchestrators go on with tasks that began with another.", REASON)
def migrate(client: Client, task_id: str, *, reason: str | None) -> Awaitable[TaskView]:
    """Move one."""
    return client.migrate(task_id, reason=reason, by=who())


@_many("delete", "Remove ended tasks for good: history, stream and outcome.")
def delete(client: Client, task_id: str) -> Awaitable[TaskView]:
    """Delete one; what it was is shown."""
    return client.delete_task(task_id)


def _change_each(
    settings: Settings, task_ids: tuple[str, ...], change: Callable[[Client, str], Awaitable[TaskView]]
) -> None:
    """Change one task after the other and print where each stands; one that refuses does not keep back the others."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of
    from llama_deploy.errors import Category, LlamaDeployError

    changed: list[dict[str, Any]] = []
    refusals: list[LlamaDeployError] = []

    async def work(client: Client) -> None:
        for task_id in task_ids:
            try:
                changed.append(document_of(await change(client, task_id), without={"result"}))
            except LlamaDeployError as error:
                refusals.append(error)
                if error.category not in {Category.NOT_FOUND, Category.CONFLICT}:
                    return

    with_client(settings, work)
    columns = [Column("task_id", "TASK"), Column("service", "SERVICE"), Column("state", "STATE")]
    if changed and any(document["paused"] for document in changed):
        columns.append(Column("waiting_for", "WAITS FOR"))
    if changed and all(document["origin"] for document in changed):
        columns.append(Column("origin", "FROM"))
    if changed or not refusals:
        Printer(settings).table(changed, columns, name="task_id")
    for error in refusals[1:]:
        click.echo(error.render(), err=True)
    if refusals:
        raise refusals[0]


def _act_on_all(
    settings: Settings,
    action: BulkAction,
    options: dict[str, Any],
    *,
    filter_text: str,
    dry_run: bool,
    yes: bool,
    limit: int | None,
) -> None:
    """Count the tasks that fit, ask, and do it to all of them."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    printer = Printer(settings)
    if any(options.get(name) for name in ("from_start", "step_id", "input_json", "data_json")):
        raise click.UsageError("--from-start, --from, --input and --data go with named tasks, not with --filter.")
    found = with_client(settings, lambda client: client.bulk(action, filter_text, dry_run=True))
    count = found.matched if limit is None else min(found.matched, limit)
    if dry_run or not count:
        _print_matches(printer, found)
        return
    printer.progress(f"{_match(found.matched)}" + (f"; {count} of them, the newest" if limit else ""))
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"--yes is needed to {action} {_tasks(count)} where nobody can be asked.")
        click.confirm(f"{action.capitalize()} {_tasks(count)}?", abort=True, err=True)
    answer = with_client(
        settings, lambda client: client.bulk(action, filter_text, limit=limit, reason=options.get("reason"))
    )
    _print_answer(printer, answer)


def _print_matches(printer: Printer, found: BulkAnswer) -> None:
    from llama_deploy.cli.output import Column, document_of

    if not printer.for_people:
        first = [document_of(view, without={"result"}) for view in found.first]
        document = {"action": found.action, "dry_run": True, "matched": found.matched, "first": first}
        printer.record(document, name=str(found.matched))
        return
    columns = [Column("task_id", "TASK"), Column("service", "SERVICE"), Column("state", "STATE")]
    if found.first:
        printer.table([document_of(view) for view in found.first], columns, name="task_id")
    more = found.matched - len(found.first)
    printer.progress(f"{_match(found.matched)}" + (f"; {more} more than these" if more > 0 else ""))


def _print_answer(printer: Printer, answer: BulkAnswer) -> None:
    """What was done, item by item; the first refusal is raised, so that the exit code tells it."""
    from llama_deploy.cli.output import Column
    from llama_deploy.connections.problems import error_from_problem

    items = [item.model_dump(exclude_none=True) for item in answer.done]
    columns = [Column("task_id", "TASK")]
    if any(item.new_task_id for item in answer.done):
        columns.append(Column("new_task_id", "NEW TASK"))
    name = "new_task_id" if len(columns) > 1 else "task_id"
    printer.table(items, columns, name=name)
    refused = answer.refused
    printer.progress(f"{len(answer.done)} done" + (f", {len(refused)} refused" if refused else ""))
    errors = [error_from_problem(item.problem, status=409) for item in refused]
    for error in errors[1:]:
        click.echo(error.render(), err=True)
    if errors:
        raise errors[0]


def _match(count: int) -> str:
    return f"{_tasks(count)} match{'es' if count == 1 else ''}"


def _tasks(count: int) -> str:
    return f"{count} task{'' if count == 1 else 's'}"


# --- done again -------------------------------------------------------------------------------------------------------


@_many(
    "retry",
    "Have failed, canceled or rejected tasks done again, each as a new task. It begins just before what had failed; "
    "what other steps have answered is kept.",
    click.option("--from-start", is_flag=True, help="Run everything anew, not only what had failed."),
    WAIT,
)
def retry(client: Client, task_id: str, *, from_start: bool) -> Awaitable[TaskView]:
    """Retry one."""
    return client.retry(task_id, from_start=from_start)


@_many(
    "replay",
    "Run tasks once more, each as a new task: from the start, or from a step, beside which other steps keep their "
    "answers. The id of a step is the task's with a number.",
    click.option("--from", "step_id", metavar="STEP_ID", help="Begin with this step; what came before is kept."),
    INPUT,
    DATA,
    WAIT,
)
def replay(client: Client, task_id: str, *, step_id: str | None, **given: str | None) -> Awaitable[TaskView]:
    """Replay one."""
    return client.replay(task_id, step_id=step_id, **_edit(**given))


@_many(
    "redrive",
    "Send steps again that were given up, of tasks that are named or of all that fit. Each task goes on from just "
    "before the failure, as a new one; one that paused because of it goes on itself.",
    WAIT,
)
def redrive(client: Client, task_id: str) -> Awaitable[TaskView]:
    """Redrive all dead letters of one."""
    return client.redrive_task(task_id)


@click.command()
@click.argument("task_id")
@click.option("--at", "seq", type=click.IntRange(1), required=True, metavar="ENTRY", help="After this history entry.")
@click.option("--step", "step_id", metavar="STEP_ID", help="The step that --input or --data is for.")
@INPUT
@DATA
@WAIT
@with_settings
def fork(settings: Settings, task_id: str, seq: int, step_id: str | None, *, wait: bool, **given: str | None) -> None:
    """Make a task that goes on from where TASK_ID stood after an entry of its history."""

    def change(client: Client, old: str) -> Awaitable[TaskView]:
        return client.fork(old, seq, step_id=step_id, **_edit(**given))

    if wait:
        _wait_for_new(settings, task_id, change)
    else:
        _change_each(settings, (task_id,), change)


COMMANDS.append(fork)


@click.command("export")
@click.argument("task_id", required=False)
@click.option("--filter", "filter_text", metavar="FILTER", help="All that fit, as in `tasks list`.")
@click.option("-f", "--file", "path", type=click.Path(dir_okay=False), metavar="FILE", help="Where to.")
@click.option("--dry-run", is_flag=True, help="Only say how many tasks match.")
@click.option("--limit", type=click.IntRange(1), metavar="COUNT", help="At most so many, the newest first.")
@click.option("--replace", is_flag=True, help="Replace FILE if it exists.")
@click.option("--unredacted", is_flag=True, help="With the values that are left out elsewhere.")
@with_settings
def export(  # noqa: PLR0917 - the options of a command
    settings: Settings,
    task_id: str | None,
    filter_text: str | None,
    path: str | None,
    dry_run: bool,  # noqa: FBT001
    limit: int | None,
    **options: bool,
) -> None:
    """Write all that is recorded of a task to FILE, or of all that fit: history, stream, contents."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    if (task_id is None) == (filter_text is None):
        raise click.UsageError("Name a task, or choose tasks with --filter.")
    if filter_text is None and (dry_run or limit is not None):
        raise click.UsageError("--dry-run and --limit go with --filter.")
    if path is None and not dry_run:
        raise click.UsageError("Missing option '-f' / '--file'.")
    printer = Printer(settings)
    if filter_text is not None:
        found = with_client(settings, lambda client: client.bulk("export", filter_text, dry_run=True))
        if dry_run:
            _print_matches(printer, found)
            return
        newest = f"; {limit} of them, the newest" if limit is not None and limit < found.matched else ""
        printer.progress(_match(found.matched) + newest)

    async def work(client: Client) -> int:
        if task_id is not None:
            return await client.export(task_id, path or "", **options)
        return await client.export_all(filter_text or "", path or "", limit=limit, **options)

    size = with_client(settings, work)
    printer.record({"file": path, "bytes": size}, name=path or "")


@click.command("import")
@click.argument("path", type=click.Path(exists=True, dir_okay=False), metavar="FILE")
@click.option("--as", "new_task_id", metavar="NEW_ID", help="Another id for the one task of the file.")
@with_settings
def import_(settings: Settings, path: str, new_task_id: str | None) -> None:
    """Take in the tasks of a FILE that `tasks export` has written; all of it is checked before."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of

    views = with_client(settings, lambda client: client.import_tasks(path, new_task_id=new_task_id))
    columns = [Column("task_id", "TASK"), Column("service", "SERVICE"), Column("state", "STATE")]
    Printer(settings).table([document_of(view, without={"result"}) for view in views], columns, name="task_id")


COMMANDS += [export, import_]


def _edit(*, input_json: str | None, data_json: str | None) -> dict[str, Any]:
    """What `--input` and `--data` give, for the client."""
    from llama_deploy.cli.calls import json_or_text, parse_json

    given: dict[str, Any] = {}
    if input_json is not None:
        given["input"] = json_or_text(input_json)
    if data_json is not None:
        given["data"] = parse_json(data_json, option="--data")
    return given


def _wait_for_new(settings: Settings, task_id: str, change: Callable[[Client, str], Awaitable[TaskView]]) -> None:
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer
    from llama_deploy.cli.run import print_result

    printer = Printer(settings)

    async def work(client: Client) -> None:
        made = await change(client, task_id)
        printer.progress(f"task {made.task_id}")
        result = await client.wait(made.task_id)
        print_result(printer, made.task_id, result)
        if result.status != "completed":
            await client.result(made.task_id)  # raises what the outcome is

    with_client(settings, work)
