"""`llamactl tokens`: make tokens, and their hashes for the deployment file. Nothing is kept here."""

from __future__ import annotations

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings

SCOPES = ("read", "run", "serve", "deploy", "admin")


@click.group(cls=CommandGroup)
def tokens() -> None:
    """Make tokens, and their hashes for the deployment file."""


@tokens.command("create")
@click.argument("name", required=False, default="me")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, help="What it allows [run].")
@with_settings
def create(settings: Settings, name: str, scopes: tuple[str, ...]) -> None:
    """Make a token for NAME. It is printed once; the lines for the deployment file have its hash only."""
    from llama_deploy.cli.output import Printer
    from llama_deploy.runtime.credentials import new_token
    from llama_deploy.types.access import HASH_PREFIX, digest_of

    token = new_token()
    hashed = f"{HASH_PREFIX}{digest_of(token).hex()}"
    listed = ", ".join(scopes or ("run",))
    printer = Printer(settings)
    document = {"name": name, "scopes": list(scopes or ("run",)), "token": token, "hash": hashed}
    printer.progress(
        "For the deployment file:\n"
        f'access:\n  tokens:\n    {name}:\n      scopes: [{listed}]\n      hash: "{hashed}"\n'
        "The token, which is shown once; keep it in a file that only you can read, and use it with --token-file:"
    )
    printer.record(document, name=token, text=lambda: token)


@tokens.command("hash")
@with_settings
def hash_token(settings: Settings) -> None:
    """The hash of the token on standard input, for the deployment file."""
    from llama_deploy.cli.calls import read_stdin
    from llama_deploy.cli.output import Printer
    from llama_deploy.types.access import HASH_PREFIX, digest_from

    hashed = f"{HASH_PREFIX}{digest_from(read_stdin().strip(), source='standard input').hex()}"
    Printer(settings).record({"hash": hashed}, name=hashed, text=lambda: hashed)
