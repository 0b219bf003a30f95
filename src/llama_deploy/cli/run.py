"""`llamactl run`: submit one task, show its hops while it runs, and print what it answers.

The task does not depend on this process: after a timeout, a lost connection or Ctrl-C it goes on, and its id says
where to find it.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.settings import Settings, with_settings
from llama_deploy.cli.task_options import taken_options, with_task_options

if TYPE_CHECKING:
    from llama_deploy.cli.hops import Hops
    from llama_deploy.cli.output import Printer
    from llama_deploy.client import Client
    from llama_deploy.types import TaskResult
    from llama_deploy.types.redaction import Redaction

TICK_S = 0.1
"""How often the display of a running task moves, on a terminal."""


@click.command()
@click.argument("service", required=False)
@click.argument("source", required=False, metavar="[-]")
@click.option("-d", "--deployment", metavar="NAME", help="A deployment of the API server; its default service is run.")
@click.option(
    "-i", "--input", "input_json", metavar="JSON", help="The input as JSON: an object of arguments, or a value."
)
@click.option(
    "-a", "--argument", "--arg", "arguments", nargs=2, multiple=True, metavar="KEY VALUE", help="One argument."
)
@click.option(
    "-f", "--file", "files", nargs=2, multiple=True, metavar="KEY PATH", help="One argument: a file, stored and passed."
)
@click.option("--service", "named", metavar="SERVICE", help="The same as SERVICE, as the published program has it.")
@click.option(
    "--session", "--session-id", "session_id", metavar="ID", help="Run in this session; it is created if need be."
)
@click.option("--no-wait", is_flag=True, help="Print the task's id and leave.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer; the task goes on."
)
@click.option("--stream", is_flag=True, help="Print the task's events as they come.")
@click.option("--wait-for-service", is_flag=True, help="Wait where nobody serves SERVICE yet, instead of failing.")
@click.option("--idempotency-key", metavar="KEY", help="Submitting again under this key finds the first task.")
@with_task_options()
@with_settings
def run(settings: Settings, service: str | None, named: str | None, deployment: str | None, **options: Any) -> None:
    """Submit a task to SERVICE and wait for its result.

    The input is -i JSON, or -a KEY VALUE for each argument, or - for text from standard input.
    """
    if named is not None:
        if service is not None and service != named:
            raise click.UsageError(f"Name the service once: '{service}' or --service '{named}'.")
        service = named
    if deployment is not None:
        settings, service = _of_deployment(settings, deployment, service)
        _take_published_session(options)
    elif service is None:
        raise click.UsageError("Missing argument 'SERVICE'.")
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    if options["stream"] and settings.output not in {"text", "wide", "jsonl"}:
        raise click.UsageError("--stream prints line by line: use -o jsonl with it, or text.")
    with_client(settings, lambda client: _run(client, Printer(settings), service, **options))


def _of_deployment(settings: Settings, name: str, service: str | None) -> tuple[Settings, str | None]:
    """The control plane of a deployment, and the service: `-s` after `run` names it, as published, if it is no URL."""
    from llama_deploy.cli.api_calls import at_deployment
    from llama_deploy.cli.settings import without_own_server

    said = click.get_current_context().params["server"]
    if said is not None and "://" not in said:
        if service is not None and service != said:
            raise click.UsageError(f"Name the service once: '{service}' or -s '{said}'.")
        settings, service = without_own_server(), said
    return at_deployment(settings, name), service


def _take_published_session(options: dict[str, Any]) -> None:
    """With `-d`, the published command line means a session by `-i`: what is no JSON is its id."""
    import json

    given = options["input_json"]
    if given is None or options["session_id"] is not None:
        return
    try:
        json.loads(given)
    except ValueError:
        options["input_json"], options["session_id"] = None, given


async def _run(
    client: Client,
    printer: Printer,
    service: str | None,
    *,
    no_wait: bool,
    timeout_s: float | None,
    stream: bool,
    source: str | None,
    input_json: str | None,
    arguments: tuple[tuple[str, str], ...],
    files: tuple[tuple[str, str], ...],
    **submission: Any,
) -> None:
    from llama_deploy.cli.output import document_of
    from llama_deploy.errors import WaitTimeoutError

    given = await input_of(client, service, source=source, input_json=input_json, arguments=arguments)
    if files:
        given = await _with_files(client, given, files)
    if given is not None:
        submission["input"] = given
    if options := taken_options(submission):
        submission["options"] = options
    task_id = await client.submit(service, **submission)
    if no_wait:
        view = await client.get_task(task_id) if not printer.for_people and printer.form != "name" else None
        printer.record(document_of(view) if view is not None else {}, name=task_id, text=lambda: task_id)
        return
    printer.progress(f"task {task_id}")
    try:
        result, hops = await _wait(client, printer, task_id, timeout_s=timeout_s, stream=stream)
    except WaitTimeoutError as error:
        printer.record(document_of(await client.get_task(task_id)), name=task_id, text=lambda: task_id)
        raise _went_on(error, task_id) from None
    except asyncio.CancelledError:
        printer.progress(f"The task goes on: llamactl tasks watch {task_id}   (or: llamactl tasks cancel {task_id})")
        raise
    print_result(printer, task_id, result)
    if result.status != "completed":
        await client.result(task_id)  # raises what the outcome is
    if hops is not None:
        hint_at_timeline(printer, task_id, hops)


async def input_of(
    client: Client,
    service: str | None,
    *,
    source: str | None,
    input_json: str | None,
    arguments: tuple[tuple[str, str], ...],
) -> Any:
    """The task's input from whichever option gave it; `None` for none. Raises `click.UsageError` for two."""
    from llama_deploy.cli.calls import parse_json, read_stdin

    given = [name for name, value in (("-", source), ("-i", input_json), ("-a", arguments)) if value]
    if len(given) > 1:
        raise click.UsageError(f"Give the input once: {' or '.join(given)}.")
    if source is not None:
        if source != "-":
            raise click.UsageError(
                f"Unexpected '{source}': give input with -i JSON, with -a KEY VALUE, or - for stdin."
            )
        return await asyncio.to_thread(read_stdin)
    if input_json is not None:
        return parse_json(input_json, option="-i")
    return await _typed(client, service, dict(arguments)) if arguments else None


async def _with_files(client: Client, given: Any, files: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The input with an artifact for each file. Raises `click.UsageError` where it is no object of arguments."""
    from llama_deploy.cli.artifacts import readable

    if given is not None and not isinstance(given, dict):
        raise click.UsageError("--file is one argument: give the others with -a KEY VALUE, or as an object with -i.")
    return {**(given or {}), **{key: await client.upload(readable(path)) for key, path in files}}


async def _typed(client: Client, service: str | None, arguments: dict[str, str]) -> dict[str, Any]:
    """Arguments by the service's schema: text where it says text, else JSON where it is JSON."""
    from llama_deploy.cli.calls import json_or_text
    from llama_deploy.errors import ServiceNotFoundError

    typed = {key: json_or_text(value) for key, value in arguments.items()}
    if service is None or all(isinstance(value, str) for value in typed.values()):
        return dict(arguments)
    try:
        schema = (await client.get_service(service)).definition.input_schema or {}
    except ServiceNotFoundError:
        schema = {}
    properties = schema.get("properties", {})
    return {
        key: arguments[key] if properties.get(key, {}).get("type") == "string" else value
        for key, value in typed.items()
    }


async def _wait(
    client: Client, printer: Printer, task_id: str, *, timeout_s: float | None, stream: bool
) -> tuple[TaskResult, Hops | None]:
    """Wait for the outcome, showing hops and events meanwhile; what shows them never decides how the wait ends.

    Returns the hops as well, where they were shown.
    """
    shows: list[asyncio.Task[Any]] = []
    following = None
    if not printer.quiet:
        following = asyncio.create_task(follow(client, task_id, on_stderr=True, live=not stream))
        shows.append(following)
    if stream:
        shows.append(asyncio.create_task(print_events(client, printer, task_id)))
    try:
        result = await client.wait(task_id, timeout_s=math.inf if timeout_s is None else timeout_s)
        await asyncio.gather(*shows)
        return result, following.result() if following is not None else None
    finally:
        for show in shows:
            show.cancel()
        await asyncio.gather(*shows, return_exceptions=True)


async def follow(client: Client, task_id: str, *, on_stderr: bool, live: bool = True) -> Hops:
    """Show a task's hops until it has ended; returns them."""
    from llama_deploy.cli.hops import follower

    shown = follower(task_id, on_stderr=on_stderr, live=live)

    async def move() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            shown.tick()

    moving = asyncio.create_task(move())
    try:
        async for entry in client.history(task_id, follow=True):
            shown.take(entry)
    finally:
        moving.cancel()
        shown.close()
    return shown.hops


def hint_at_timeline(printer: Printer, task_id: str, hops: Hops) -> None:
    """Tell a person how to see more of a task, where there is more to see."""
    if printer.for_people and hops.eventful:
        printer.progress(f"Next: llamactl tasks timeline {task_id}")


async def print_events(
    client: Client, printer: Printer, task_id: str, *, first: int = 0, redact: Redaction | None = None
) -> None:
    """Print a task's stream events as they come, until it has ended, without what is to be left out."""
    from llama_deploy.cli.output import shown

    without = redact.value if redact else lambda data: data
    if not printer.line_by_line:
        events = [event async for event in client.stream(task_id, first=first)]
        printer.table([{"index": event.index, "data": without(event.data)} for event in events], [], name="index")
        return
    async for event in client.stream(task_id, first=first):
        data = without(event.data)
        printer.item({"index": event.index, "data": data}, text=lambda data=data: shown(data))  # type: ignore[misc]


def print_result(printer: Printer, task_id: str, result: TaskResult) -> None:
    """Print an outcome: for a person the answer alone, and nothing of a failure, which is told as an error."""
    from llama_deploy.cli.output import answer_text, document_of

    if printer.for_people:
        if result.status == "completed":
            printer.line(answer_text(result.output))
        return
    document = {"task_id": task_id, "state": result.status, "result": document_of(result)}
    printer.record(document, name=task_id)


def _went_on(error: Exception, task_id: str) -> Exception:
    from llama_deploy.errors import WaitTimeoutError

    return WaitTimeoutError(
        f"task {task_id} has not ended in time",
        why=getattr(error, "why", "") or "The task goes on.",
        fix=f"llamactl tasks watch {task_id}     follow it\nllamactl tasks cancel {task_id}    stop it",
        task_id=task_id,
    )
