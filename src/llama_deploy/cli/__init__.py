"""`llamactl`, the command line: one file per group of commands, each imported when it is used.

Standard output carries data and nothing else; progress, hints and errors go to standard error. Everything that the
commands do goes through the public client and the API server; nothing is decided here.
"""

from __future__ import annotations


def main() -> None:
    """The entry point of `llamactl`: run the command that `sys.argv` names, and exit with its code."""
    import sys

    from llama_deploy.cli.app import leave_closed_errors, run_command

    exit_code = run_command(sys.argv[1:])
    leave_closed_errors()
    sys.exit(exit_code)
