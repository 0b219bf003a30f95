"""`llamactl schema`: the deployment file as JSON Schema, for editors."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON Schema of deployment files, from which editors complete and check them."""
    from llama_deploy.apiserver import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
