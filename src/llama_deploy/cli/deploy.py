"""`llamactl deploy`: have an API server run a deployment file, in the place of what runs under its name."""

from __future__ import annotations

import io
from pathlib import Path

import click

from llama_deploy.cli.settings import Settings, with_settings


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--base-path", metavar="FOLDER", help="A folder on the server with the code, in the place of sending it.")
@click.option("--dry-run", is_flag=True, help="Change nothing; show how it differs from what runs.")
@click.option("--now", is_flag=True, help="Tasks that have begun go on with the new version at once.")
@click.option("--reload", is_flag=True, hidden=True, help="What it does anyway.")
@with_settings
def deploy(
    settings: Settings, file: Path | None, *, base_path: str | None, dry_run: bool, now: bool, reload: bool
) -> None:
    """Run the deployment in FILE on an API server [http://127.0.0.1:4501]; returns when all of it is ready.

    The files beside FILE are sent along. A deployment that runs already is updated: no task is lost, tasks finish on
    the version that they began with, and where the new one does not start the old one goes on.
    """
    del reload
    from llama_deploy.apiserver.deployment_file import find_deployment_file, load_deployment_file
    from llama_deploy.apiserver.deployments.trees import pack
    from llama_deploy.cli.api_calls import api_server, deployment_text, document_of_deployment, with_deployments
    from llama_deploy.cli.output import Printer

    place = find_deployment_file(file)
    deployment = load_deployment_file(place)
    printer = Printer(settings)
    for notice in deployment.notices:
        printer.progress(notice)
    archive = None
    if base_path is None:
        stream = io.BytesIO()
        pack(place.absolute().parent, stream)
        archive = stream.getvalue()
    answer = with_deployments(
        settings,
        lambda client: client.deploy(
            place.read_bytes(), file_name=place.name, archive=archive, base_path=base_path, dry_run=dry_run, now=now
        ),
    )
    if dry_run:
        printer.record(answer, name=deployment.name, text=lambda: answer["text"])
        return
    printer.record(document_of_deployment(answer), name=deployment.name, text=lambda: deployment_text(answer))
    if not answer["changed"]:
        printer.progress("Nothing has changed.")
    printer.progress(f"Try: llamactl -s {api_server(settings)}/deployments/{deployment.name} services list")
