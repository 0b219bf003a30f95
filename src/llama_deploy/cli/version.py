"""`llamactl version`: what runs here, for a report of a problem."""

from __future__ import annotations

import click

from llama_deploy.cli.settings import Settings, with_settings


@click.command()
@with_settings
def version(settings: Settings) -> None:
    """The version of this program, of Python, and of the protocol between clients and control plane."""
    import platform

    from llama_deploy._version import __version__
    from llama_deploy.cli.output import Printer
    from llama_deploy.messages.frames import PROTOCOL_VERSION

    document = {
        "version": __version__,
        "protocol": PROTOCOL_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    Printer(settings).record(document, name=__version__)
