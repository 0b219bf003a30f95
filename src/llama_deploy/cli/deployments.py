"""`llamactl deployments`: what an API server runs, in which version, how it fares, and changing that."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.logs import logs
from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.client.deployments import DeploymentsClient


@click.group(cls=CommandGroup)
def deployments() -> None:
    """What an API server [http://127.0.0.1:4501] runs."""


@deployments.command("list")
@with_settings
def list_deployments(settings: Settings) -> None:
    """List the deployments."""
    from llama_deploy.cli.api_calls import document_of_deployment, finishing_text, services_text, with_deployments
    from llama_deploy.cli.output import Column, Printer

    found = with_deployments(settings, lambda client: client.list_deployments())
    columns = [Column("name", "DEPLOYMENT"), Column("state", "STATE"), Column("version", "VERSION")]
    columns += [Column("services", "SERVICES", services_text), Column("finishing", "FINISHING", finishing_text)]
    wide = [Column("created_at", "CREATED"), Column("updated_at", "UPDATED")]
    items = [document_of_deployment(view) for view in found]
    Printer(settings).table(items, columns, wide=wide, name="name", empty="No deployments yet: llamactl deploy FILE")


@deployments.command("get")
@click.argument("name")
@with_settings
def get_deployment(settings: Settings, name: str) -> None:
    """One deployment: what is wanted, what runs, and why not."""
    _show(settings, name, lambda client: client.get(name))


@deployments.command("versions")
@click.argument("name")
@with_settings
def versions(settings: Settings, name: str) -> None:
    """The versions of a deployment, the newest first."""
    from llama_deploy.cli.api_calls import document_of_deployment, with_deployments
    from llama_deploy.cli.output import Column, Printer

    found = with_deployments(settings, lambda client: client.versions(name))
    columns = [Column("version", "VERSION"), Column("current", "CURRENT"), Column("state", "STATE")]
    columns += [Column("created_at", "CREATED"), Column("reason", "REASON")]
    items = [document_of_deployment(view) for view in found]
    Printer(settings).table(items, columns, wide=[Column("digest", "DIGEST")], name="version")


@deployments.command("rollback")
@click.argument("name")
@click.option("--version", type=int, metavar="N", help="Which version [the last one before that was seen to run].")
@click.option("--now", is_flag=True, help="Tasks of the present version do not finish on it.")
@with_settings
def rollback(settings: Settings, name: str, version: int | None, *, now: bool) -> None:
    """Go back to an earlier version, with its code and settings as they were; returns when it is ready."""
    _show(settings, name, lambda client: client.rollback(name, version, now=now))


@deployments.command("finish")
@click.argument("name")
@click.option("--version", type=int, metavar="N", help="Which version [all that still finish tasks].")
@with_settings
def finish(settings: Settings, name: str, version: int | None) -> None:
    """Have tasks that finish on an earlier version go on with the present one, at once."""
    _show(settings, name, lambda client: client.finish(name, version))


@deployments.command("render")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--kubernetes", is_flag=True, required=True, help="Values of the Helm chart, for `helm install -f`.")
@click.option("--image", metavar="NAME:TAG", help="For the control plane, and services whose source names no image.")
@click.option("--secret", metavar="NAME", help="The secret of the cluster with what FILE takes from the environment.")
@with_settings
def render(settings: Settings, file: Path | None, *, kubernetes: bool, image: str | None, secret: str | None) -> None:
    """What another system needs to run the deployment in FILE; nothing is started, and no server is asked."""
    from llama_deploy.apiserver.deployment_file import find_deployment_file, load_deployment_file
    from llama_deploy.apiserver.kubernetes import chart_values
    from llama_deploy.cli.output import Printer

    assert kubernetes, "there is nothing else yet"
    place = find_deployment_file(file)
    deployment = load_deployment_file(place)
    rendered = chart_values(deployment, place.read_bytes(), image=image, secret=secret)
    Printer(settings).record(rendered.values, name=deployment.name, text=lambda: rendered.text.rstrip("\n"))


@deployments.command("scale")
@click.argument("name")
@click.argument("counts", nargs=-1, required=True, metavar="SERVICE=N...")
@with_settings
def scale(settings: Settings, name: str, counts: tuple[str, ...]) -> None:
    """Have N processes of SERVICE from now on, also in later versions; `SERVICE=file` as many as the file says."""
    wanted = [_count(text) for text in counts]

    async def work(client: DeploymentsClient) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for service, count in wanted:
            answer = await client.scale(name, service, count)
        return answer

    _show(settings, name, work)


@deployments.command("stop")
@click.argument("name")
@with_settings
def stop(settings: Settings, name: str) -> None:
    """End its processes after they have drained. What is unfinished is kept, and goes on with the next start."""
    _show(settings, name, lambda client: client.stop(name))


@deployments.command("start")
@click.argument("name")
@with_settings
def start(settings: Settings, name: str) -> None:
    """Start it again, or what of it has failed; returns when all of it is ready."""
    _show(settings, name, lambda client: client.start(name))


@deployments.command("restart")
@click.argument("name")
@with_settings
def restart(settings: Settings, name: str) -> None:
    """Stop it and start it again."""

    async def work(client: DeploymentsClient) -> dict[str, Any]:
        await client.stop(name)
        return await client.start(name)

    _show(settings, name, work)


@deployments.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_settings
def delete(settings: Settings, name: str, *, yes: bool) -> None:
    """End a deployment after it has drained, and remove all that it has kept, its tasks and their results included."""
    from llama_deploy.cli.api_calls import with_deployments
    from llama_deploy.cli.output import Printer

    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{name} and all its tasks would be removed for good; say --yes to do it")
        click.confirm(f"Remove {name} and all its tasks for good?", abort=True, err=True)
    answer = with_deployments(settings, lambda client: client.delete(name))
    Printer(settings).record(answer, name=name, text=lambda: f"{name}: deleted")


deployments.add_command(logs)


@deployments.command("events")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with the events to come.")
@with_settings
def events(settings: Settings, name: str, *, follow: bool) -> None:
    """What happened to it: versions, restarts, failures."""
    from llama_deploy.cli.api_calls import with_deployments
    from llama_deploy.cli.output import Printer, iso_time

    printer = Printer(settings)

    def text(event: dict[str, Any]) -> str:
        return f"{event['at']}  {event['kind']:<13}  {event['message']}"

    async def work(client: DeploymentsClient) -> list[dict[str, Any]]:
        found = []
        async for event in client.events(name, follow=follow):
            document = {**event, "at": iso_time(event["at"])}
            if printer.line_by_line:
                printer.item(document, text=lambda document=document: text(document))  # type: ignore[misc]
            else:
                found.append(document)
        return found

    found = with_deployments(settings, work)
    if not printer.line_by_line:
        printer.table(found, [], name="number")


def _show(settings: Settings, name: str, ask: Callable[[DeploymentsClient], Awaitable[dict[str, Any]]]) -> None:
    from llama_deploy.cli.api_calls import deployment_text, document_of_deployment, with_deployments
    from llama_deploy.cli.output import Printer

    view = with_deployments(settings, ask)
    Printer(settings).record(document_of_deployment(view), name=name, text=lambda: deployment_text(view))


def _count(text: str) -> tuple[str, int | None]:
    service, _, count = text.rpartition("=")
    if not service or not (count.isdigit() or count == "file"):
        raise click.UsageError(f"'{text}': give SERVICE=N, as in shout=3, or SERVICE=file.")
    return service, None if count == "file" else int(count)
