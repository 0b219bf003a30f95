"""The root of the command line: the table of commands, and the one place where an error becomes an exit code.

Exit codes: 0 done, 1 the task failed, 2 usage or invalid file, 3 cannot reach the server, 4 not found, 5 conflict,
6 not authorised, 7 timed out while the work goes on, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from llama_deploy._version import __version__
from llama_deploy.cli.lazy import LazyGroup
from llama_deploy.cli.settings import common_options
from llama_deploy.errors import EXIT_CODE, LlamaDeployError

INTERRUPTED = 130
USAGE = 2
PIPE_CLOSED = 141
"""What a shell reports for a program that SIGPIPE ended: the reader of our output has gone."""

_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a write to standard output says when the disk behind it is full or broken."""

COMMANDS = {
    "init": ("llama_deploy.cli.init:init", "Write a deployment file and two services to start from."),
    "dev": ("llama_deploy.cli.serve:dev", "Run a deployment here, and again whenever its code changes."),
    "serve": ("llama_deploy.cli.serve:serve", "Run a deployment, its control plane alone, or one service."),
    "run": ("llama_deploy.cli.run:run", "Submit a task and wait for its result."),
    "status": ("llama_deploy.cli.status:status", "How the control plane stands."),
    "tasks": ("llama_deploy.cli.tasks:tasks", "List, watch, answer and cancel tasks; have them done again."),
    "services": ("llama_deploy.cli.services:services", "List the services; pause, limit and drain them."),
    "schedules": ("llama_deploy.cli.schedules:schedules", "Submit tasks at times, again and again."),
    "queues": ("llama_deploy.cli.queues:queues", "See what waits for each service, and why."),
    "sessions": ("llama_deploy.cli.sessions:sessions", "List the sessions, look into one, erase one."),
    "backup": ("llama_deploy.cli.backup:backup", "Copy everything that is recorded to a file."),
    "restore": ("llama_deploy.cli.backup:restore", "Make a store of a backup."),
    "artifacts": ("llama_deploy.cli.artifacts:artifacts", "Store files for tasks, and fetch what tasks have made."),
    "explain": ("llama_deploy.cli.explain:explain", "What an error code means."),
    "version": ("llama_deploy.cli.version:version", "The version of this program."),
}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command has --help. An error's code is explained by: llamactl explain CODE",
)
@common_options
@click.version_option(__version__, prog_name="llamactl")
def root(**_common: Any) -> None:
    """Submit tasks to services, watch them, and run the deployments that do them."""


def run_command(args: Sequence[str]) -> int:
    """Run one command line, and return its exit code; what went wrong stands on standard error then."""
    try:
        value = root.main(list(args), prog_name="llamactl", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return USAGE if isinstance(error, click.UsageError) else error.exit_code
    except LlamaDeployError as error:
        click.echo(error.render(), err=True)
        return EXIT_CODE[error.category]
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except SystemExit:  # what click makes of a closed pipe, and of nothing else
        return PIPE_CLOSED
    except BrokenPipeError:
        _leave_output()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _leave_output()
        click.echo(f"Error: the output cannot be written: {error.strerror}", err=True)
        return USAGE
    return value if isinstance(value, int) else 0


def leave_closed_errors() -> None:
    """Where nobody reads standard error any more, what is left for it goes nowhere, and changes no exit code."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _leave_output() -> None:
    """The interpreter flushes standard output once more when it exits; let that go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
