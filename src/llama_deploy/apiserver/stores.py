"""Which store a setting means: that of a deployment file, of a command line, or of a `Deployment`."""

from __future__ import annotations

import os
from pathlib import Path

from llama_deploy.errors import SettingError, SharedStoreError
from llama_deploy.state_stores import MemoryStore, SQLiteStore, StateStore
from llama_deploy.state_stores.keys import keys_from
from llama_deploy.state_stores.postgres_connection import is_postgres, is_store

DATA_FOLDER = ".llama_deploy"
"""Where stores live by default, below the folder of the deployment."""


def open_store(
    store: str | os.PathLike[str] | StateStore | None,
    *,
    name: str = "default",
    folder: Path | None = None,
    key_file: str | os.PathLike[str] | None = None,
    shared: bool = False,
) -> StateStore:
    """The store that a setting names: a path below `folder`, `":memory:"`, the URL of a PostgreSQL database
    (`postgresql://…`), a `StateStore`, or nothing for the default place.

    One that is `shared` takes no sessions when it is opened: its control planes divide them.
    What is kept in a file or a database is encrypted when `key_file` or the environment names keys. Raises
    `SettingError` for keys that are none, and for a URL that cannot be read; `SharedStoreError` where it is to be
    shared and there is room for one control plane only.
    """
    if shared and not (isinstance(store, StateStore) or (isinstance(store, str) and is_postgres(store))):
        raise SharedStoreError(
            "several control planes can share a PostgreSQL store only",
            why=f"the store is {store or 'a file beside the deployment file'}",
            fix="name one: store: postgresql://user@host/database",
        )
    if isinstance(store, StateStore):
        return store
    if store is not None and not is_store(str(store)):
        raise SettingError(
            f"there is no store for {str(store).partition('://')[0]}://…",
            why="data lives in a file, in memory, or in a PostgreSQL database",
            fix="give a path, `:memory:`, or `postgresql://user@host/database`",
        )
    if store is not None and str(store) == ":memory:":
        return MemoryStore()
    made: StateStore
    if isinstance(store, str) and is_postgres(store):
        from llama_deploy.state_stores.postgres import PostgresStore

        made = PostgresStore(store, claims=not shared)
    else:
        folder = folder or Path()
        made = SQLiteStore(folder / DATA_FOLDER / f"{name}.db" if store is None else folder / store)
    keys = keys_from(key_file)
    if keys is None:
        return made
    from llama_deploy.state_stores.encrypted import EncryptedStore

    return EncryptedStore(made, keys)
