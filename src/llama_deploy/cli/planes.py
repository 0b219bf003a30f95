"""What commands say about several control planes: which one alone is asked, and which ones did not answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llama_deploy.cli.output import Printer
    from llama_deploy.types import MissingPlane

which_plane = click.option(
    "--control-plane",
    metavar="NAME",
    help="Only what this control plane knows, by its name or URL; by default all that share the store are asked.",
)


def beside(missing: Sequence[MissingPlane]) -> dict[str, Any]:
    """What programs find beside a list that is not of all."""
    return {"missing": [one.model_dump() for one in missing]} if missing else {}


def tell_missing(printer: Printer, missing: Sequence[MissingPlane]) -> None:
    """Say who did not answer."""
    for one in missing:
        where = f"{one.name} at {one.url}" if one.url else one.name
        why = f" ({one.why})" if one.why else ""
        printer.progress(f"The control plane {where} does not answer: what it alone knows is not shown.{why}")
