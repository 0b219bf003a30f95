"""State stores: the only memory of the system, behind one contract.

`StateStore` says what is true of a store after a crash; `SQLiteStore` keeps it in a file, `PostgresStore` in a database
(with the extra `postgres`), `MemoryStore` for the time of the process. The rows of the contract are in
`llama_deploy.state_stores.base`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.memory import MemoryStore

if TYPE_CHECKING:
    from llama_deploy.state_stores.postgres import PostgresStore
    from llama_deploy.state_stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "PostgresStore", "SQLiteStore", "StateStore"]


def __getattr__(name: str) -> object:
    """Import a store when it is first asked for: who keeps everything in memory needs no database module."""
    if name == "SQLiteStore":
        from llama_deploy.state_stores.sqlite import SQLiteStore

        return SQLiteStore
    if name == "PostgresStore":
        from llama_deploy.state_stores.postgres import PostgresStore

        return PostgresStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
