"""`llamactl open`: the page of a deployment, in a browser, or its URL where there is none to open it in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.client.deployments import DeploymentsClient


@click.command("open")
@click.argument("name", required=False)
@click.option("--print", "only_print", is_flag=True, help="Print its URL, and open nothing.")
@with_settings
def open_(settings: Settings, name: str | None, *, only_print: bool) -> None:
    """Open the page of deployment NAME on an API server [http://127.0.0.1:4501]; NAME may be left out if it runs one.

    The URL is printed in any case; without a terminal nothing is opened.
    """
    from llama_deploy.cli.api_calls import api_server, with_deployments
    from llama_deploy.cli.output import Printer

    found, page = with_deployments(settings, lambda client: _page(client, name))
    url = api_server(settings) + page
    Printer(settings).record({"name": found, "url": url}, name=url, text=lambda: url)
    if not only_print and sys.stdout.isatty():
        click.launch(url)


async def _page(client: DeploymentsClient, name: str | None) -> tuple[str, str]:
    """The deployment that is meant, and the path of its page. Raises `NotOfferedError` where it has none."""
    from llama_deploy.errors import NotOfferedError

    if await client.is_control_plane():
        raise NotOfferedError(
            f"the control plane at {client.url} has no page",
            why="pages belong to deployments of an API server, described by the key `ui` of their files",
            fix="llamactl -s URL open NAME   where URL is that of an API server\n"
            f"llamactl -s {client.url} status   how this control plane stands",
        )
    if name is None:
        names = [view["name"] for view in await client.list_deployments()]
        if len(names) != 1:
            raise click.UsageError(f"Name the deployment: {', '.join(names) or 'there is none yet'}.")
        name = names[0]
    page = (await client.get(name)).get("page")
    if page is None:
        raise NotOfferedError(f"the deployment {name} has no page", fix="describe one with the key `ui` of its file")
    return name, page
