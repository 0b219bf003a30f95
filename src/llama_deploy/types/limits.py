"""How much of a service may run at once, and how often: what a service says of itself, or an operator of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

RUNNING_MAX_MOST = 1_000_000
"""The highest limit of running steps that can be set."""
RATE_COUNT_MOST = 100_000
"""The highest count of a rate; the beginnings of so many attempts are remembered."""
RATE_SECONDS_MOST = 86_400.0
"""The longest time that a rate can count over, in seconds."""


class RateLimit(BaseModel):
    """At most `count` attempts begin within any `seconds`."""

    model_config = ConfigDict(extra="forbid", defer_build=True, frozen=True)

    count: int = Field(ge=1, le=RATE_COUNT_MOST)
    seconds: float = Field(default=1.0, gt=0, le=RATE_SECONDS_MOST, allow_inf_nan=False)
    burst: int | None = Field(default=None, ge=1, le=RATE_COUNT_MOST)
    """How many of them may begin at once; the others follow evenly. None: as many as `count`."""

    def __str__(self) -> str:
        burst = f", {self.burst} at once" if self.burst is not None else ""
        return f"{self.count} in {self.seconds:g} s{burst}"


class ServiceLimits(BaseModel):
    """What may run at once over all instances of a service, and how often attempts begin. None is no limit.

    A step counts from when it is handed to the queue until it is answered, lost, parked or taken back, and where its
    code is told to stop, until it has; while it waits for a person it does not count.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True, frozen=True)

    running_max: int | None = Field(default=None, ge=1, le=RUNNING_MAX_MOST)
    """Steps at once."""
    running_max_per_session: int | None = Field(default=None, ge=1, le=RUNNING_MAX_MOST)
    """Steps at once of one session; a task without one is a session of its own."""
    running_max_per_key: int | None = Field(default=None, ge=1, le=RUNNING_MAX_MOST)
    """Steps at once of one `key`; it says nothing of steps without one."""
    rate: RateLimit | None = None

    @property
    def over_sessions(self) -> bool:
        """Whether steps of different sessions are limited together."""
        return not (self.running_max is None and self.running_max_per_key is None and self.rate is None)

    @property
    def nothing(self) -> bool:
        """Whether nothing is limited."""
        return self == NO_LIMITS


NO_LIMITS = ServiceLimits.model_construct()
"""The limits of a service that has none."""
