"""What the API shows of several control planes that share one store: those that are missing from an answer.

Views made for reading, never stored.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class MissingPlane(BaseModel):
    """A control plane that was asked and did not answer in time: what it alone knows is missing from the answer."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    name: str
    """What it is called, as `/v1/status` shows it."""
    url: str = ""
    """Where it is reached; empty where it does not say."""
    why: str = ""
    """Why there is no answer of it, in words."""
