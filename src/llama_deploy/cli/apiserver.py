"""`llamactl apiserver`: run many deployments on one server, each apart from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llama_deploy.cli.serving_options import drain_option, ready_file_option
from llama_deploy.cli.settings import Settings, with_settings


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=4501, show_default=True, help="0 takes a free one.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where all that it keeps is [.llama_deploy/apiserver].",
)
@click.option("--host-name", "host_names", multiple=True, metavar="NAME", help="A further name that it goes by.")
@click.option(
    "--access",
    "access_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Who is let in: what stands under `access` in a deployment file.",
)
@click.option("--allow-remote", is_flag=True, help="Listen beyond loopback without tokens: anyone can run code here.")
@drain_option
@click.option(
    "--update-drain",
    "update_drain_s",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long processes of an earlier version may finish what they hold.",
)
@click.option(
    "--start-timeout",
    "start_timeout_s",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Within which all processes of a new version have to be ready.",
)
@click.option(
    "--restarts",
    "restarts_max",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    metavar="N",
    help="Restarts of a process within a minute before it has failed.",
)
@click.option("--deployments-max", type=click.IntRange(1), default=100, show_default=True, metavar="N")
@ready_file_option
@with_settings
def apiserver(settings: Settings, paths: tuple[Path, ...], **options: Any) -> None:
    """Run an API server, and on it the deployments of PATHS: deployment files, or folders of them.

    Deployments stay when it stops: the next start on the same data runs them again.
    """
    from llama_deploy.apiserver.deployments.options import RunningOptions
    from llama_deploy.apiserver.deployments.serving import DATA_FOLDER, ServerOptions, serve_api
    from llama_deploy.cli.serve import reporter, run_until_done

    names = ("drain_timeout_s", "update_drain_s", "start_timeout_s", "restarts_max")
    running = RunningOptions(**{name: options.pop(name) for name in names})
    data = options.pop("data") or DATA_FOLDER
    run_until_done(serve_api(ServerOptions(paths=paths, data=data, running=running, **options), reporter(settings)))
