"""Releases as the API shows them: which version of a deployment's code tasks begin with, and finish with.

What a release is, and what becomes of tasks whose release is there no more, is `llama_deploy.control_plane.releases`.
Times are seconds since the epoch, UTC.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ReleaseView(BaseModel):
    """One release that tasks are bound to."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    release: str
    """The word that instances say which run it."""
    state: Literal["current", "finishing"]
    """`current`: new tasks are bound to it. `finishing`: it only goes on with those that began with it."""
    since: float
    """When it became current."""
    until: float | None = None
    """When another one became current; None for the current one."""
    finish_by: float | None = None
    """When what is left of its tasks goes on with the current one; None for the current one."""
    tasks: int = 0
    """Unfinished tasks that are bound to it, as far as they are known here: 0 means that there is none anywhere, where
    one control plane has its store to itself."""
    instances: dict[str, int] = Field(default_factory=dict)
    """Instances that are here now, by service."""


class ReleasesView(BaseModel):
    """The releases that tasks are bound to, in the order in which they became current."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    current: str | None = None
    """What new tasks are bound to; None as long as nobody has said it, and no task is bound."""
    items: list[ReleaseView] = Field(default_factory=list)
