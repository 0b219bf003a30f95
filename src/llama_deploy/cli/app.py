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
from llama_deploy.cli.profiles import CONFIG_FILE
from llama_deploy.cli.settings import common_options
from llama_deploy.errors import EXIT_CODE, LlamaDeployError, OutputError, WrongUsageError

INTERRUPTED = 130
USAGE = 2
COMPLETION_VARIABLE = "_LLAMACTL_COMPLETE"
"""Set by the shell that asks for words."""
PIPE_CLOSED = 141
"""What a shell reports for a program that SIGPIPE ended: the reader of our output has gone."""

_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a write to standard output says when the disk behind it is full or broken."""

COMMANDS = {
    "init": ("llama_deploy.cli.init:init", "Write a deployment file and two services to start from."),
    "dev": ("llama_deploy.cli.serve:dev", "Run a deployment here, and again whenever its code changes."),
    "serve": ("llama_deploy.cli.serve:serve", "Run a deployment, its control plane alone, or one service."),
    "run": ("llama_deploy.cli.run:run", "Submit a task and wait for its result."),
    "graph": ("llama_deploy.cli.graphs:graph", "Draw the orchestrator of a deployment, before anything runs."),
    "status": ("llama_deploy.cli.status:status", "How the control plane stands."),
    "apiserver": ("llama_deploy.cli.apiserver:apiserver", "Run many deployments on one server."),
    "deploy": ("llama_deploy.cli.deploy:deploy", "Run a deployment file on an API server."),
    "deployments": ("llama_deploy.cli.deployments:deployments", "List, update, scale, stop, remove deployments."),
    "open": ("llama_deploy.cli.open:open_", "Open the page of a deployment."),
    "logs": ("llama_deploy.cli.logs:logs", "What the processes of a deployment print."),
    "tasks": ("llama_deploy.cli.tasks:tasks", "List, watch, answer and cancel tasks; have them done again."),
    "services": ("llama_deploy.cli.services:services", "List the services; pause, limit and drain them."),
    "releases": ("llama_deploy.cli.releases:releases", "Which release new tasks begin with, and which ones finish."),
    "schedules": ("llama_deploy.cli.schedules:schedules", "Submit tasks at times, again and again."),
    "queues": ("llama_deploy.cli.queues:queues", "See what waits for each service, and why."),
    "sessions": ("llama_deploy.cli.sessions:sessions", "List the sessions, look into one, erase one."),
    "backup": ("llama_deploy.cli.backup:backup", "Copy everything that is recorded to a file."),
    "restore": ("llama_deploy.cli.backup:restore", "Make a store of a backup."),
    "artifacts": ("llama_deploy.cli.artifacts:artifacts", "Store files for tasks, and fetch what tasks have made."),
    "config": ("llama_deploy.cli.config:config", "Keep profiles of servers, and see what is in force."),
    "completion": ("llama_deploy.cli.completion:completion", "Have a shell complete commands and options."),
    "doctor": ("llama_deploy.cli.doctor:doctor", "Look for what keeps things from working."),
    "tokens": ("llama_deploy.cli.tokens:tokens", "Make tokens, and their hashes for the deployment file."),
    "schema": ("llama_deploy.cli.schema:schema", "The deployment file as JSON Schema, for editors."),
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
@click.option("--timeout", "published_timeout", type=click.FloatRange(min=0, min_open=True), hidden=True)
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where the profiles are [$LLAMACTL_CONFIG].",
)
@click.pass_context
@click.version_option(__version__, prog_name="llamactl")
def root(ctx: click.Context, /, published_timeout: float | None, config_file: str | None, **_common: Any) -> None:
    """Submit tasks to services, watch them, and run the deployments that do them."""
    if published_timeout is not None and ctx.params.get("request_timeout") is None:
        ctx.params["request_timeout"] = published_timeout
    if config_file is not None:
        ctx.meta[CONFIG_FILE] = config_file


def run_command(args: Sequence[str]) -> int:
    """Run one command line, and return its exit code; what went wrong stands on standard error then."""
    try:
        value = root.main(list(args), prog_name="llamactl", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        return _told(_wrong_usage(error))
    except LlamaDeployError as error:
        return _told(error)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except SystemExit as error:  # what click makes of a closed pipe, and of the words that a shell completes with
        return PIPE_CLOSED if COMPLETION_VARIABLE not in os.environ else int(error.code or 0)
    except BrokenPipeError:
        _leave_output()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _leave_output()
        fix = "make room, or send the output elsewhere; what was asked for has been done"
        return _told(OutputError("the output cannot be written", why=error.strerror or "", fix=fix))
    return value if isinstance(value, int) else 0


def _told(error: LlamaDeployError) -> int:
    """Tell an error on standard error; the exit code that it means."""
    click.echo(error.render(), err=True)
    return EXIT_CODE[error.category]


def _wrong_usage(error: click.ClickException) -> WrongUsageError:
    """What click says of a command line, as every error is told."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    what, _, why = error.format_message().partition("\n")
    usage = context.get_usage() if context is not None else ""
    command = context.command_path if context is not None else "llamactl"
    return WrongUsageError(what, why=why or usage, fix=f"{command} --help   says what it takes")


def leave_closed_errors() -> None:
    """Where nobody reads standard error any more, what is left for it goes nowhere, and changes no exit code."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _leave_output() -> None:
    """The interpreter flushes standard output once more when it exits; let that go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
