"""How an API server runs its deployments: numbers that a person may give with its command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningOptions:
    """How deployments are run. Times are seconds."""

    drain_timeout_s: float = 30.0
    """How long a process may finish what it holds when its deployment stops; the rest is handed back."""
    update_drain_s: float = 3600.0
    """How long a process of an earlier version may finish the steps that it holds, once its version has finished; the
    rest is done again by the present one."""
    start_timeout_s: float = 60.0
    """Within which every process of a new version has to be ready."""
    restarts_max: int = 5
    """Restarts of one process within `restart_period_s`; one more, and it has failed."""
    restart_period_s: float = 60.0
    hidden: frozenset[str] = frozenset()
    """Variables of the server's environment that its deployments do not get."""
    restart_pause_s: float = 0.25
    """Pause before the first restart; each further one within the period is twice as long, up to 10 seconds."""
