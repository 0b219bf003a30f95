"""Which store a setting means: that of a deployment file, of a command line, or of a `Deployment`."""

from __future__ import annotations

import os
from pathlib import Path

from llama_deploy.state_stores import MemoryStore, SQLiteStore, StateStore
from llama_deploy.state_stores.keys import keys_from

DATA_FOLDER = ".llama_deploy"
"""Where stores live by default, below the folder of the deployment."""


def open_store(
    store: str | os.PathLike[str] | StateStore | None,
    *,
    name: str = "default",
    folder: Path | None = None,
    key_file: str | os.PathLike[str] | None = None,
) -> StateStore:
    """The store that a setting names: a path, `":memory:"`, a `StateStore`, or nothing for the default place.

    What is kept in a file is encrypted when `key_file` or the environment names keys. Raises `SettingError` for keys
    that are none.
    """
    if isinstance(store, StateStore):
        return store
    if store is not None and str(store) == ":memory:":
        return MemoryStore()
    made = SQLiteStore((folder or Path()) / DATA_FOLDER / f"{name}.db" if store is None else store)
    keys = keys_from(key_file)
    if keys is None:
        return made
    from llama_deploy.state_stores.encrypted import EncryptedStore

    return EncryptedStore(made, keys)
