"""Whether another distribution has put its files among ours: the published one has the same import name.

Looked at where a person starts something, and where an import has failed; not at every import. Nothing is changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llama_deploy.errors import TwoDistributionsError

PACKAGE = Path(__file__).resolve().parent.parent
PUBLISHED = "llama_deploy-*.dist-info"


def two_distributions(folder: Path = PACKAGE.parent) -> TwoDistributionsError | None:
    """What is to be said when the published distribution is installed in the folder that this package is in."""
    found = next((path.name for path in folder.glob(PUBLISHED)), None)
    if found is None:
        return None
    return TwoDistributionsError(
        "llama-deploy and llama-deploy-engine are installed together",
        why=f"{found} is beside this package in {folder}, and both are imported as llama_deploy",
        fix="pip uninstall llama-deploy\npip install --force-reinstall --no-deps llama-deploy-engine",
    )


def explain(error: Exception) -> None:
    """Raise `TwoDistributionsError` in the place of an error of an import, if that is what it comes from."""
    told = two_distributions()
    if told is not None:
        told.add_note(f"Fix: {told.fix}")
        raise told from error


def warn_of_two_distributions() -> None:
    """Say it on standard error, if there is something to say."""
    error = two_distributions()
    if error is not None:
        sys.stderr.write(error.render() + "\n")
