"""What was erased, or would be: numbers, never content."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ErasureView(BaseModel):
    """What belongs to one session, and whether it is gone."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    session_id: str
    tasks: int
    """Tasks of the session, and what came of them: children, retries, replays, forks."""
    unfinished: int
    """Those of them that had not ended; they are canceled first."""
    state_keys: int
    """Keys of the state that its tasks shared."""
    erased: bool = False
    """False: nothing was changed, this is what would go."""
    scrubbed: bool = False
    """Whether nothing of it can be read from the store's files any more."""
    at: float | None = None
    """When it was erased, seconds since the epoch."""
    by: str = ""
    """Who asked for it, as they said."""


class ErasurePage(BaseModel):
    """Everything that was ever erased, the latest first; `next` is always None, there is one page."""

    items: list[ErasureView]
    next: str | None = None
