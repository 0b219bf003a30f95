"""`llamactl tasks graph` and `llamactl graph`: where a task stands on the graph of its orchestrator, and that graph
before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.cli.output import Printer
    from llama_deploy.client import Client
    from llama_deploy.orchestrators.picture import Picture

REDRAW_S_MIN = 0.2
"""How long a picture stands at least before it is drawn anew."""


def _drawing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How it is drawn, where not as lines of text."""
    svg = click.option("--svg", metavar="FILE|-", help="Write it to FILE as SVG, for a browser or a page.")
    mermaid = click.option("--mermaid", is_flag=True, help="Print it as a Mermaid flowchart, for Markdown.")
    return mermaid(svg(function))


@click.command("graph")
@click.argument("task_id")
@_drawing_options
@click.option("--watch", is_flag=True, help="Draw it anew whenever something happens, until the task has ended.")
@with_settings
def task_graph(settings: Settings, task_id: str, *, mermaid: bool, svg: str | None, watch: bool) -> None:
    """Draw the graph of a task's orchestrator, and where the task stands on it.

    Of an orchestrator that says nothing of itself it draws what has happened: services, and the messages between them.
    """
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    show = _Shown(Printer(settings), mermaid=mermaid, svg=svg, again=watch)
    with_client(settings, lambda client: _watch(client, show, task_id) if watch else _once(client, show, task_id))


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--orchestrator", metavar="NAME", help="One of those that FILE has by name, not the default one.")
@_drawing_options
@with_settings
def graph(settings: Settings, file: Path | None, *, orchestrator: str | None, mermaid: bool, svg: str | None) -> None:
    """Draw the orchestrator of the deployment in FILE, before anything runs.

    FILE is deployment.yml in this folder by default. No control plane is asked.
    """
    from llama_deploy.apiserver.deployment_file import load_deployment_file
    from llama_deploy.apiserver.loader import load_orchestrator
    from llama_deploy.apiserver.wording import did_you_mean, listed
    from llama_deploy.cli.output import Printer
    from llama_deploy.errors import SettingError
    from llama_deploy.orchestrators.task_picture import orchestrator_picture

    deployment = load_deployment_file(file)
    spec = deployment.orchestrator
    if orchestrator is not None:
        names = list(deployment.orchestrators)
        if orchestrator not in names:
            raise SettingError(
                f"{deployment.path} has no orchestrator `{orchestrator}`{did_you_mean(orchestrator, names)}",
                why=f"Its orchestrators by name: {listed(names) if names else 'none'}.",
            )
        spec = deployment.orchestrators[orchestrator]
    picture = orchestrator_picture(load_orchestrator(spec, deployment.folder))
    _Shown(Printer(settings), mermaid=mermaid, svg=svg).draw(picture)


class _Shown:
    """Where and how pictures are drawn: each in the place of the one before, where it can be."""

    def __init__(self, printer: Printer, *, mermaid: bool, svg: str | None, again: bool = False) -> None:
        import sys

        if mermaid and svg is not None:
            raise click.UsageError("--mermaid and --svg are two ways to draw it: give one of them")
        if again and not printer.line_by_line and svg is None:
            raise click.UsageError(
                f"--watch draws it again and again, and -o {printer.form} is one document: use jsonl"
            )
        self._printer = printer
        self._mermaid = mermaid
        self._svg = svg
        self._in_place = again and printer.for_people and not mermaid and sys.stdout.isatty()
        self._before: list[str] = []

    def draw(self, picture: Picture) -> None:
        """Draw it, unless it would look as before."""
        from dataclasses import asdict

        if self._svg is not None and self._svg != "-":
            write_drawing(self._printer, self._svg, picture.svg(), quietly=bool(self._before))
            self._before = [self._svg]
            return
        if self._svg is not None or self._mermaid:
            lines = (picture.mermaid() if self._mermaid else picture.svg()).splitlines()
        elif not self._printer.for_people:
            self._printer.record(asdict(picture), name=picture.title)
            return
        else:
            lines = picture.lines()
        if lines == self._before:
            return
        if self._in_place and self._before:
            click.echo(f"\x1b[{len(self._before)}F\x1b[J", nl=False)
        elif self._before:
            self._printer.line("")
        self._before = lines
        for line in lines:
            self._printer.line(line)


def write_drawing(printer: Printer, place: str, text: str, *, quietly: bool = False) -> None:
    """Write a drawing to a file, which is there as a whole at every moment, or with `-` to standard output."""
    from llama_deploy.errors import InvalidRequestError

    if place == "-":
        printer.line(text.rstrip())
        return
    path = Path(place)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be written", why=str(error.strerror or error)) from error
    if not quietly:
        printer.progress(f"drawn in {path}")


async def _once(client: Client, show: _Shown, task_id: str) -> None:
    show.draw(await client.graph(task_id))


async def _watch(client: Client, show: _Shown, task_id: str) -> None:
    """Draw it now and after each entry of the history; entries that come close together are drawn at once."""
    import asyncio

    happened = asyncio.Event()

    async def follow() -> None:
        async for _ in client.history(task_id, follow=True):
            happened.set()

    following = asyncio.create_task(follow())
    following.add_done_callback(lambda _: happened.set())
    try:
        while True:
            happened.clear()
            over = following.done()
            show.draw(await client.graph(task_id))
            if over:
                return following.result()
            await happened.wait()
            if not following.done():
                await asyncio.sleep(REDRAW_S_MIN)
    finally:
        following.cancel()
