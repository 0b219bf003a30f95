"""`llamactl logs`: what the processes of a deployment print, on an API server or under `llamactl serve`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import click

from llama_deploy.cli.settings import Settings, with_settings
from llama_deploy.errors import InvalidRequestError

if TYPE_CHECKING:
    from llama_deploy.client import Client
    from llama_deploy.client.deployments import DeploymentsClient


@click.command()
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with the lines to come.")
@click.option("-n", "--last", type=click.IntRange(0, 5000), default=200, show_default=True, metavar="N", help="Lines.")
@with_settings
def logs(settings: Settings, name: str | None, *, follow: bool, last: int) -> None:
    """What the processes of deployment NAME on an API server [http://127.0.0.1:4501] print.

    Without NAME, those of the control plane that `llamactl serve` or `dev` runs.
    """
    if name is None:
        from llama_deploy.cli.calls import with_client

        async def of_plane(client: Client) -> None:
            await _print(settings, client.logs(last=last, follow=follow))

        try:
            with_client(settings, of_plane)
        except InvalidRequestError as error:
            if "no route" not in error.what:
                raise
            raise click.UsageError(f"{settings.server} is an API server: name one of its deployments.") from error
        return
    from llama_deploy.cli.api_calls import with_deployments

    async def of_deployment(client: DeploymentsClient) -> None:
        await _print(settings, client.logs(name, last=last, follow=follow))

    with_deployments(settings, of_deployment)


async def _print(settings: Settings, lines: AsyncIterator[str]) -> None:
    from llama_deploy.cli.output import Printer

    printer = Printer(settings)
    if not printer.line_by_line and settings.output != "name":
        printer.table([{"line": line} async for line in lines], [], name="line")
        return
    async for line in lines:
        printer.item({"line": line}, text=lambda line=line: line)  # type: ignore[misc]
