"""`llamactl serve` and `llamactl dev`: run what a deployment file describes.

Both say on standard error what happens; standard output stays empty. A child of the supervisor is a `serve --only`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llama_deploy.cli.serving_options import drain_option, ready_file_option
from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.apiserver.specs import DeploymentFile
    from llama_deploy.runtime.credentials import Credentials

Value = TypeVar("Value")

DEV_DRAIN_TIMEOUT_S = 5.0
"""How long a service may finish what it holds when its code has changed; the rest runs again on the new code."""


def _place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the control plane listens and keeps its data; each wins over the deployment file."""
    for option in (
        click.option("--allow-remote", is_flag=True, help="Listen beyond loopback without asking for tokens."),
        click.option(
            "--store",
            metavar="PATH|URL",
            help="Where the data lives; `postgresql://…` in a database, `:memory:` keeps none [.llama_deploy/].",
        ),
        click.option(
            "--message-queue", metavar="URL", help="What carries the messages; `simple` for the queue that is built in."
        ),
        click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one."),
        click.option("--host", metavar="ADDRESS", help="Address to listen on."),
        click.option("--shared", is_flag=True, help="Share the store with other control planes (PostgreSQL)."),
        click.option(
            "--public-url", metavar="URL", help="Where services and other control planes reach this one, with --shared."
        ),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@_place_options
@ready_file_option
@with_settings
def dev(settings: Settings, file: Path | None, **options: Any) -> None:
    """Run the deployment in FILE on this machine, and again whenever its code changes.

    FILE is deployment.yml in this folder by default. Data is kept in .llama_deploy/ beside it.
    """
    from llama_deploy.apiserver.deployment_file import load_deployment_file
    from llama_deploy.apiserver.serving import ServingOptions, serve_deployment

    deployment = load_deployment_file(file)
    report = reporter(settings, _notices(deployment))
    serving = ServingOptions(**options, drain_timeout_s=DEV_DRAIN_TIMEOUT_S)
    if run_until_done(serve_deployment(deployment, serving, report, watch=True), log_level="WARNING"):
        import os

        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very program again


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--only", metavar="NAME", help="Only the service NAME, or only `control-plane`.")
@click.option(
    "--control-plane",
    "control_plane_url",
    metavar="URL",
    help="Where the control plane is, for --only NAME [-s, else where FILE has it listen].",
)
@_place_options
@drain_option
@click.option(
    "--release",
    envvar="LLAMA_DEPLOY_RELEASE",
    metavar="NAME",
    help="The release that the code of the services is of; tasks finish on the one that they began with.",
)
@ready_file_option
@click.option("--check", is_flag=True, help="Read FILE and import what it names, and start nothing.")
@with_settings
def serve(
    settings: Settings,
    file: Path | None,
    only: str | None,
    control_plane_url: str | None,
    *,
    check: bool,
    **options: Any,
) -> None:
    """Run the deployment in FILE: its control plane, and each service in processes of its own.

    With --only, one part of it, so that the parts can run on different machines.
    """
    from llama_deploy.runtime.lifeline import die_with_supervisor

    die_with_supervisor()
    from llama_deploy.apiserver.deployment_file import load_deployment_file
    from llama_deploy.apiserver.loader import check_deployment
    from llama_deploy.apiserver.specs import CONTROL_PLANE

    deployment = load_deployment_file(file)
    if check:
        check_deployment(deployment)
        if settings.output not in {"text", "wide"}:
            from llama_deploy.cli.output import Printer

            names = [service.name for service in deployment.services]
            document = {"name": deployment.name, "file": str(deployment.path), "services": names}
            Printer(settings).record(document, name=deployment.name)
        click.echo(f"{deployment.path}: {_counted(len(deployment.services))} can be served", err=True)
    elif only is not None and only != CONTROL_PLANE:
        _serve_one(deployment, only, _given_url(control_plane_url, settings), settings, options)
    else:
        from llama_deploy.apiserver.serving import ServingOptions, serve_control_plane, serve_deployment

        work = serve_deployment if only is None else serve_control_plane
        run_until_done(work(deployment, ServingOptions(**options), reporter(settings, _notices(deployment))))


def _given_url(control_plane_url: str | None, settings: Settings) -> str | None:
    """Where a person says that the control plane is; `None` leaves it to the file."""
    return control_plane_url or (settings.server if settings.server_given else None)


def _serve_one(
    deployment: DeploymentFile, name: str, url: str | None, settings: Settings, options: dict[str, Any]
) -> None:
    from llama_deploy.apiserver.ready_file import ReadyFile
    from llama_deploy.apiserver.service_process import serve_service
    from llama_deploy.apiserver.specs import CONTROL_PLANE
    from llama_deploy.apiserver.wording import did_you_mean, listed
    from llama_deploy.errors import SettingError

    names = [service.name for service in deployment.services]
    if name not in names:
        raise SettingError(
            f"{deployment.path} has no service `{name}`{did_you_mean(name, [*names, CONTROL_PLANE])}",
            why=f"Its services are {listed(names)}.",
        )
    spec = deployment.service(name)
    url = url or _url_in_file(deployment)
    ready_file = ReadyFile(options["ready_file"], reporter(settings))
    drain_timeout_s = options["drain_timeout_s"]
    run_until_done(
        serve_service(
            spec,
            deployment.folder,
            control_plane_url=url,
            drain_timeout_s=drain_timeout_s,
            ready_file=ready_file,
            credentials=_credentials(settings),
            release=options["release"] or "",
        )
    )


def _credentials(settings: Settings) -> Credentials:
    """What a service shows to the control plane: what its parent gave it, else what a person says.

    The parent's is taken out of the environment, which is the service's code's as well.
    """
    import os
    from dataclasses import replace

    from llama_deploy.cli.credentials import credentials_of
    from llama_deploy.runtime.credentials import INSTANCE_TOKEN_VARIABLE

    given = os.environ.pop(INSTANCE_TOKEN_VARIABLE, None)
    said = credentials_of(settings)
    return said if given is None else replace(said, token=given, token_file=None)


def _url_in_file(deployment: DeploymentFile) -> str:
    """Where the deployment file has the control plane listen, as this machine reaches it."""
    from llama_deploy.apiserver.addresses import local_url, url_of
    from llama_deploy.errors import SettingError

    place = deployment.control_plane
    if place.port == 0:
        raise SettingError(
            "it is not known where the control plane is",
            why=f"{deployment.path} has it take any free port (0).",
            fix="--control-plane URL   name the URL that the control plane said when it started",
        )
    return local_url(url_of(place.host, place.port))


def _notices(deployment: DeploymentFile) -> list[str]:
    """What the file says in vain where there is no API server to act on it, after all else that it says in vain."""
    here = [
        f"{service.name}: its python-dependencies are installed by an API server; here, into {sys.prefix} by yourself"
        for service in deployment.services
        if service.python_dependencies
    ]
    return [*deployment.notices, *here]


def reporter(settings: Settings, notices: Sequence[str] = ()) -> Callable[[str], None]:
    """Writes progress to standard error, beginning with the notices: what the file says in vain."""

    def report(text: str) -> None:
        if not settings.quiet:
            with contextlib.suppress(OSError):  # whoever read it has gone; what is served is for others
                click.echo(text, err=True)

    for notice in notices:
        report(notice)
    return report


def run_until_done(work: Coroutine[Any, Any, Value], *, log_level: str = "INFO") -> Value:
    """Run what serves until it has ended, with logs on standard error."""
    import asyncio

    import uvloop

    from llama_deploy.runtime.logs import configure
    from llama_deploy.runtime.process import tune_collector

    configure(log_level)
    tune_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _counted(services: int) -> str:
    return "1 service" if services == 1 else f"{services} services"
