"""`llamactl artifacts`: storing files for tasks, and fetching what tasks have made.

An artifact is given as its hash or as its JSON, just as results show it; `-` stands for standard input or output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.client import Client
    from llama_deploy.types.artifacts import Artifact


@click.group(cls=CommandGroup)
def artifacts() -> None:
    """Store files for tasks, and fetch what tasks have made."""


@artifacts.command("put")
@click.argument("source", metavar="FILE|-")
@click.option("--name", metavar="NAME", help="What it is called; the file's own name by default.")
@click.option("--media-type", metavar="TYPE", help="What it is, like text/csv; what the name says by default.")
@with_settings
def put_artifact(settings: Settings, source: str, name: str | None, media_type: str | None) -> None:
    """Store a file; prints the artifact, to be passed to a task."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer, compact

    async def work(client: Client) -> Artifact:
        content: Any = sys.stdin.buffer if source == "-" else readable(source)
        return await client.upload(content, name=name, media_type=media_type)

    stored = with_client(settings, work).model_dump(mode="json")
    Printer(settings).record(stored, name=stored["$artifact"], text=lambda: compact(stored))


@artifacts.command("get")
@click.argument("artifact", metavar="ARTIFACT")
@click.option(
    "-O", "--file", "path", metavar="PATH", help="A file, a folder, or - for standard output; this folder by default."
)
@with_settings
def get_artifact(settings: Settings, artifact: str, path: str | None) -> None:
    """Fetch the content of ARTIFACT: its hash, or its JSON as a result shows it."""
    from llama_deploy.cli.calls import with_client
    from llama_deploy.cli.output import Printer

    wanted = parsed(artifact)

    async def work(client: Client) -> Path | None:
        if path == "-":
            async for data in client.chunks(wanted):
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return None
        return await client.download(wanted, path or ".")

    written = with_client(settings, work)
    if written is not None:
        printer = Printer(settings)
        document = {"file": str(written), "bytes": written.stat().st_size}
        printer.record(document, name=str(written), text=lambda: str(written))


def parsed(text: str) -> Artifact:
    """The artifact that a person means. Raises `InvalidRequestError`."""
    import json

    from pydantic import ValidationError

    from llama_deploy.errors import InvalidRequestError
    from llama_deploy.types.artifacts import Artifact

    try:
        given: Any = json.loads(text) if text.lstrip().startswith("{") else {"$artifact": text, "size_bytes": 0}
        return Artifact.model_validate(given)
    except (ValueError, ValidationError):
        raise InvalidRequestError(
            f"{text[:80]!r} is no artifact",
            why="it is a hash of 64 hex digits, or JSON with `$artifact` in it",
            fix="copy it from a result, or from `llamactl artifacts put`",
        ) from None


def readable(path: str) -> Path:
    """A file that can be read. Raises `InvalidRequestError`."""
    from llama_deploy.errors import InvalidRequestError

    try:
        with Path(path).open("rb"):
            return Path(path)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}", why=str(error.strerror)) from None
