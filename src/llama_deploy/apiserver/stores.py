"""Which store a setting means: that of a deployment file, of a command line, or of a `Deployment`."""

from __future__ import annotations

import os
from pathlib import Path

from llama_deploy.state_stores import MemoryStore, SQLiteStore, StateStore

DATA_FOLDER = ".llama_deploy"
"""Where stores live by default, below the folder of the deployment."""


def open_store(
    store: str | os.PathLike[str] | StateStore | None, *, name: str = "default", folder: Path | None = None
) -> StateStore:
    """The store that a setting names: a path, `":memory:"`, a `StateStore`, or nothing for the default place."""
    if isinstance(store, StateStore):
        return store
    if store is None:
        return SQLiteStore((folder or Path()) / DATA_FOLDER / f"{name}.db")
    if str(store) == ":memory:":
        return MemoryStore()
    return SQLiteStore(store)
