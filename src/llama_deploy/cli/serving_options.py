"""The options of what serves until it is stopped: how long work may finish, and how a script is told it is ready."""

from __future__ import annotations

from pathlib import Path

import click

drain_option = click.option(
    "--drain-timeout",
    "drain_timeout_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long services may finish what they hold when they are stopped.",
)

ready_file_option = click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Write url, pid and where the data is there as JSON once all is ready; it is removed when it stops.",
)
