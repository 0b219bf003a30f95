"""One page of a ledger: a list that an orchestrator keeps for a task, and only adds to."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class LedgerPage(BaseModel):
    """Items of one ledger in order. Items never change, so what was read once need not be read again."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    name: str
    first: int
    """The position of the first of `items`, counted from 0."""
    items: list[Any]
    length: int
    """How many items the ledger has now."""
    next: int | None = None
    """What to pass as `first` for the next page, None after the last one."""
