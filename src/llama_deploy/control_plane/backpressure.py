"""Backpressure: a submission that would be one too many is refused, with the setting and when to come again.

Only submissions are refused, before anything is recorded. What an orchestrator decides for a task that runs always
finds room, and so does the child that a running step calls: refusing those would keep work from being finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_deploy.errors import QueueFullError

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine
    from llama_deploy.control_plane.session_state import SessionState

RETRY_AFTER_S = (0.2, 60.0)
"""The shortest and the longest time after which somebody is told to come again."""
DRAINED_SHARE = 0.01
"""Whoever was refused is told to come again when so much of the limit should have been worked off."""
RATE_OVER_S = 5.0
"""How often is taken from what was done within the latest seconds, up to twice as many."""


class DrainRate:
    """How many a second leave, from a count that somebody else keeps; it is looked at only when it matters."""

    def __init__(self, now: float, count: int) -> None:
        self._from = self._to = (now, count)

    def per_s(self, now: float, count: int) -> float:
        """How many have left a second lately."""
        if now - self._to[0] >= RATE_OVER_S:
            self._from, self._to = self._to, (now, count)
        elapsed_s = now - self._from[0]
        return (count - self._from[1]) / elapsed_s if elapsed_s > 0 else 0.0


class Backpressure:
    """What a full engine refuses."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rates: dict[str, DrainRate] = {}
        self._ended = DrainRate(engine.clock.now(), 0)

    def check(self, session: SessionState | None) -> None:
        """Raise `QueueFullError` where one more task is one too many."""
        engine = self._engine
        settings = engine.settings
        if engine.cache.unfinished >= settings.tasks_unfinished_max:
            most = settings.tasks_unfinished_max
            raise self._full(f"{most} tasks are unfinished", "tasks_unfinished_max", most)
        if engine.store.backlog >= settings.store_backlog_max:
            most = settings.store_backlog_max
            raise self._full(f"{most} changes wait to be written", "store_backlog_max", most)
        if session is not None and session.unfinished >= settings.tasks_unfinished_per_session_max:
            most = settings.tasks_unfinished_per_session_max
            what = f"{most} tasks of session {session.session_id} are unfinished"
            raise self._full(what, "tasks_unfinished_per_session_max", most)

    def check_queue(self, service: str) -> None:
        """Raise `QueueFullError` where as much waits for a service as may."""
        engine = self._engine
        most = engine.settings.queue_depth_max
        waiting = engine.releases.depth(service)
        gate = engine.admission.gates.get(service) if engine.admission.gates else None
        if gate is not None:
            waiting += gate.waiting
        if waiting >= most:
            raise self._full(f"{waiting} steps wait for {service}", "queue_depth_max", most, service=service)

    def _full(self, what: str, setting: str, limit: int, *, service: str = "") -> QueueFullError:
        retry_after_s = self._retry_after_s(limit, service)
        return QueueFullError(
            what,
            why=f"{setting} is {limit}",
            fix=f"submit again in {retry_after_s:g} s, or raise {setting}",
            setting=setting,
            limit=limit,
            retry_after_s=retry_after_s,
        )

    def _retry_after_s(self, limit: int, service: str) -> float:
        """When a little of the limit should have been worked off, by how fast that goes lately."""
        engine = self._engine
        now = engine.clock.now()
        entry = engine.registry.services.get(service)
        if entry is None:
            per_s = self._ended.per_s(now, engine.statistics.ended)
        else:
            rate = self._rates.get(service)
            if rate is None:
                rate = self._rates[service] = DrainRate(engine.started_at, 0)
            per_s = rate.per_s(now, entry.answered)
        least, most = RETRY_AFTER_S
        if per_s <= 0:
            return 1.0 if now - engine.started_at < RATE_OVER_S else most
        return round(min(most, max(least, limit * DRAINED_SHARE / per_s, 1 / per_s)), 1)
