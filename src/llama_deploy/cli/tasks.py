"""`llamactl tasks`: what tasks there are, where each stands, and what a person can do about one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli import graphs, task_control
from llama_deploy.cli.filtering import FilterCommand, filter_text
from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.cli.output import Printer
    from llama_deploy.client import Client
    from llama_deploy.types import TaskResult, WebhookView
    from llama_deploy.types.redaction import Redaction

STATES = (
    "submitted", "working", "input_required", "auth_required", "completed", "failed", "canceled", "rejected",
)  # fmt: skip


@click.group(cls=CommandGroup)
def tasks() -> None:
    """List, watch, answer and cancel tasks; have them done again."""


@tasks.command("list", cls=FilterCommand)
@click.argument("terms", nargs=-1, metavar="[FILTER]...")
@click.option(
    "--state", "states", type=click.Choice(STATES), multiple=True, help="Only tasks in this state; repeatable."
)
@click.option("--service", metavar="NAME", help="Only tasks for this service.")
@click.option("--session", "session_id", metavar="ID", help="Only tasks of this session.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Tasks on the page.")
@click.option("--cursor", metavar="CURSOR", help="Where the page starts: `next` of the one before it.")
@with_settings
def list_tasks(settings: Settings, states: tuple[str, ...], terms: tuple[str, ...], **filters: Any) -> None:
    r"""List tasks, newest first; with a FILTER, those that fit all of it.

    \b
    state:failed,canceled   service:writer   session:s1   id:abc*   error:LD502
    origin:retry:*   from:TASK_ID   paused:yes   'hops>3'   'age>2d'
    'created>2026-01-31'   'ended<1h'   -state:completed (not)
    """
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Column, Printer, document_of

    text = filter_text(terms)
    page = with_client(settings, lambda client: client.list_tasks_page(state=states or None, filter=text, **filters))
    columns = [Column("task_id", "TASK"), Column("service", "SERVICE"), Column("state", "STATE")]
    columns += [Column("hops", "HOPS"), Column("created_at", "CREATED"), Column("waiting_for", "WAITS FOR")]
    wide = [
        Column("origin", "FROM"),
        Column("error", "ERROR"),
        Column("session_id", "SESSION"),
        Column("updated_at", "UPDATED"),
        Column("ended_at", "ENDED"),
    ]
    items = [document_of(view, without={"result"}) for view in page.items]
    Printer(settings).table(items, columns, wide=wide, name="task_id", cursor=page.next, empty="No such tasks.")


@tasks.command("ledger")
@click.argument("task_id")
@click.argument("name", default="transcript")
@click.option("--first", type=click.IntRange(min=0), default=0, help="The position of the first item.")
@with_settings
def show_ledger(settings: Settings, task_id: str, name: str, first: int) -> None:
    """A list that the orchestrator of a task keeps: `transcript` of a group chat, `done` of a planner."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    with_client(settings, lambda client: _show_ledger(client, Printer(settings), task_id, name, first))


async def _show_ledger(client: Client, printer: Printer, task_id: str, name: str, first: int) -> None:
    from llama_deploy.cli.output import Column

    items: list[dict[str, Any]] = []
    async for item in client.ledger(task_id, name, first=first):
        items.append({"position": first + len(items), "item": item})
    printer.table(items, [Column("position", "POSITION"), Column("item", "ITEM")], name="position", empty="No items.")


@tasks.command("get")
@click.argument("task_id")
@with_settings
def get_task(settings: Settings, task_id: str) -> None:
    """Where a task stands, its steps, and its result once it has one."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    with_client(settings, lambda client: _get(client, Printer(settings), task_id))


def _webhook_in_words(webhook: WebhookView) -> str:
    """How the news of a task's end gets on, in one line."""
    from llama_deploy.cli.output import iso_time

    words = f"{webhook.state} ({webhook.url})"
    if webhook.state == "sending":
        words += f", attempt {webhook.attempt}" + (f" at {iso_time(webhook.due_at)}" if webhook.due_at else "")
    return f"{words}: {webhook.error}" if webhook.error else words


async def _redaction(client: Client) -> Redaction:
    """What nobody gets to see who looks at tasks here."""
    from llama_deploy.types.redaction import Redaction

    return Redaction((await client.status()).get("redact") or ())


async def _outcome(client: Client, task_id: str) -> TaskResult:
    """The outcome of a task, once it has one, as people get to see it."""
    from llama_deploy.types import TaskResult

    result = await client.wait(task_id)
    redact = await _redaction(client)
    return TaskResult.model_validate(redact.result(result.model_dump(mode="json"))) if redact else result


async def _get(client: Client, printer: Printer, task_id: str) -> None:
    from llama_deploy.cli.hops import PlainFollower
    from llama_deploy.cli.output import answer_text, document_of, fields
    from llama_deploy.cli.run import hint_at_timeline
    from llama_deploy.types import FINAL_STATES

    view = await client.get_task(task_id)
    result = await _outcome(client, task_id) if view.state in FINAL_STATES else None
    document = document_of(view, without={"result"})
    if not printer.for_people:
        document["result"] = document_of(result) if result is not None else None
        printer.record(document, name=task_id)
        return
    if view.webhook is not None:
        document["webhook"] = _webhook_in_words(view.webhook)
    lines = [fields(document), ""]
    steps = PlainFollower(lines.append, task_id)
    async for entry in client.history(task_id):
        steps.take(entry)
    printer.line("\n".join(lines))
    if result is not None and result.status == "completed":
        printer.line(f"\n{answer_text(result.output)}")
    elif result is not None and result.error is not None:
        printer.line(f"\n{result.error.code} {result.error.type}: {result.error.message}")
        if result.error.fix:
            printer.line(f"Fix: {result.error.fix}")
        if printer.form == "wide" and result.error.traceback:
            printer.line(result.error.traceback)
    made = await client.list_tasks_page(filter=f'from:"{task_id}"', limit=20)
    if made.items:
        printer.line("\n" + "\n".join(f"{view.origin}  {view.task_id}  {view.state.value}" for view in made.items))
    hint_at_timeline(printer, task_id, steps.hops)


@tasks.command()
@click.argument("task_id")
@with_settings
def watch(settings: Settings, task_id: str) -> None:
    """Follow a task's history until it has ended; the exit code is that of its outcome.

    A lost connection is made again and the history read on from where it stood.
    """
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    with_client(settings, lambda client: _watch(client, Printer(settings), task_id))


async def _watch(client: Client, printer: Printer, task_id: str) -> None:
    from llama_deploy.cli.output import document_of
    from llama_deploy.cli.run import follow, print_result
    from llama_deploy.client.outcomes import failure_of

    if printer.form == "jsonl":
        async for entry in client.history(task_id, follow=True):
            printer.item(document_of(entry), text=str)
    elif printer.form in {"json", "yaml"}:
        entries = [document_of(entry) async for entry in client.history(task_id, follow=True)]
        printer.table(entries, [], name="seq")
    elif printer.for_people:
        await follow(client, task_id, on_stderr=False)
    result = await _outcome(client, task_id)
    if printer.for_people:
        print_result(printer, task_id, result)
    elif printer.form == "name":
        printer.line(task_id)
    if result.status != "completed":
        raise failure_of(task_id, result)


@tasks.command()
@click.argument("task_id")
@click.option(
    "--width", type=click.IntRange(min=40), metavar="COLUMNS", help="Columns of the picture [the terminal's, or 100]."
)
@click.option("--svg", metavar="FILE|-", help="Write it to FILE as SVG, for a browser or a page.")
@with_settings
def timeline(settings: Settings, task_id: str, width: int | None, svg: str | None) -> None:
    """Draw when each step of a task waited and ran, in each of its attempts.

    Of a task that has not ended it shows what is known now. Long gaps in which nothing ran are cut short.
    """
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    with_client(settings, lambda client: _timeline(client, Printer(settings), task_id, width, svg))


async def _timeline(client: Client, printer: Printer, task_id: str, width: int | None, svg: str | None) -> None:
    import time

    from llama_deploy.cli.timeline import Timeline

    told = Timeline()
    async for entry in client.history(task_id):
        told.fold(entry)
    view = await client.get_task(task_id)
    told.go_on(time.time(), waits=view.waiting_for is not None)
    if svg is not None:
        from llama_deploy.cli.graphs import write_drawing
        from llama_deploy.cli.timeline_svg import timeline_svg

        write_drawing(printer, svg, timeline_svg(told))
    elif printer.for_people:
        from llama_deploy.cli.output import duration
        from llama_deploy.cli.timeline_picture import print_timeline

        print_timeline(told, width=width)
        steps = f"{len(told.hops)} step{'' if len(told.hops) == 1 else 's'}"
        waits = f"; waits for {view.waiting_for}" if view.waiting_for else ""
        if view.origin:
            printer.line(f"\nfrom {view.origin}")
        printer.line(f"\n{told.state.value.replace('_', ' ')} after {duration(told.seconds)}, {steps}{waits}")
    else:
        printer.table([hop.document() for hop in told.hops.values()], [], name="step_id")


@tasks.command()
@click.argument("task_id")
@click.option("--first", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Start at this event.")
@with_settings
def events(settings: Settings, task_id: str, first: int) -> None:
    """Print a task's stream events as they come, until it has ended."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer
    from llama_deploy.cli.run import print_events

    async def work(client: Client) -> None:
        await print_events(client, Printer(settings), task_id, first=first, redact=await _redaction(client))

    with_client(settings, work)


@tasks.command()
@click.argument("task_id")
@click.argument("value", metavar="VALUE|-")
@click.option("--step", "step_id", metavar="ID", help="The step that is answered, where several wait.")
@click.option("--text", is_flag=True, help="Take VALUE as text even if it is JSON.")
@with_settings
def send(settings: Settings, task_id: str, value: str, step_id: str | None, *, text: bool) -> None:
    """Give a task that waits for a person its answer.

    VALUE is JSON if it can be read as JSON, and text otherwise; - reads it from standard input.
    """
    from llama_deploy.cli.calls import json_or_text, read_stdin, with_client
    from llama_deploy.cli.output import Printer, document_of

    said = read_stdin() if value == "-" else value
    answer = said if text else json_or_text(said)
    printer = Printer(settings)

    async def work(client: Client) -> None:
        await client.send_input(task_id, answer, step_id=step_id)
        if not printer.for_people:
            printer.record(document_of(await client.get_task(task_id), without={"result"}), name=task_id)

    with_client(settings, work)
    printer.progress(f"Recorded. Follow the task: llamactl tasks watch {task_id}")


for _command in (graphs.task_graph, *task_control.COMMANDS):
    tasks.add_command(_command)
