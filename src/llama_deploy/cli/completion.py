"""`llamactl completion`: what a shell has to know to complete commands and options. The words come from the program."""

from __future__ import annotations

import click

from llama_deploy.cli.settings import Settings, with_settings

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@with_settings
def completion(settings: Settings, shell: str) -> None:
    """Print what SHELL has to run to complete `llamactl`.

    For bash: source <(llamactl completion bash), in ~/.bashrc. For fish: llamactl completion fish | source.
    """
    from click.shell_completion import get_completion_class

    from llama_deploy.cli.app import COMPLETION_VARIABLE, root
    from llama_deploy.cli.output import Printer

    found = get_completion_class(shell)
    assert found is not None, "click knows the three"
    made = found(root, {}, "llamactl", COMPLETION_VARIABLE)
    script = made.source_template % made.source_vars()  # `source` would look for the shell itself first
    Printer(settings).record({"shell": shell, "script": script}, name=shell, text=lambda: script)
