"""What it means to lead shards from now on, and to lead them no more.

What is gained is taken up like everything at a start: its deliveries fall due once the instances that hold steps of it
had time to say so. What is lost is forgotten, and nothing is written about it: tasks, sessions, turns and places leave
memory, whoever waits is told to ask again, and instances are told to offer what they hold to others.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import LlamaDeployError
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine
    from llama_deploy.control_plane.gateway import Gateway

log = get_logger("llama_deploy.leadership")

AGAIN_S = 0.5
"""Pause before what was gained is taken up once more, where the store could not be written."""


class Takeover:
    """Gains and losses of one engine."""

    def __init__(
        self, engine: Engine, gateway: Gateway, further: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    ) -> None:
        self._engine = engine
        self._further = further
        """What else goes on where an earlier leader has stopped."""
        self._gateway = gateway
        leadership = engine.leadership
        leadership.gained, leadership.lost = self.gained, self.lost

    def gained(self, shards: Sequence[int]) -> None:
        """Lead these from now on: instances offer what they hold of them, the rest falls due after a while."""
        self._engine.leadership.begun_at.update(dict.fromkeys(shards, self._engine.clock.now()))
        if self._engine.ready:  # the start takes up what there is by then
            self._gateway.claimed(shards)
            failpoint("takeover.gained")
            self._engine.spawn(self._take_up(list(shards)))

    async def _take_up(self, shards: list[int]) -> None:
        engine = self._engine
        when = engine.clock.now() + engine.settings.recovery_grace_s
        while mine := [shard for shard in shards if shard in engine.leadership.shards]:
            try:
                left = await engine.store.take_up(mine, when)
            except LlamaDeployError as error:
                log.warning("what was gained cannot be taken up now, trying again", error=str(error))
                await engine.sleep(AGAIN_S)
                continue
            failpoint("takeover.taken_up")
            engine.arm_sweeper(when)
            for work in self._further:
                engine.spawn(work())
            if left:
                engine.admission.close_until(when)
                log.info("taking up unfinished work of another control plane", steps=left, shards=len(mine))
            return

    def lost(self, shards: Sequence[int]) -> None:
        """Forget all that belongs to these; nothing about it is handed to the store any more."""
        engine = self._engine
        gone = set(shards)
        shard = engine.leadership.shard
        entries = [entry for entry in engine.cache.tasks.values() if shard(entry.row.session_id) in gone]
        for entry in entries:
            self._forget(entry)
        for session in list(engine.cache.sessions.values()):
            if shard(session.session_id) in gone:
                engine.cache.forget_session(session)
        if entries:
            log.info("forgot what others lead", tasks=len(entries), shards=len(gone))
        if engine.ready:
            failpoint("takeover.forgotten")
            self._gateway.not_led({entry.row.task_id for entry in entries}, shards)
        for entry in entries:
            entry.tell_moved()

    def _forget(self, entry: TaskEntry) -> None:
        engine = self._engine
        entry.moved = True
        waiting = [step.step_id for step in entry.open.values() if step.published and step.claimed_by is None]
        if waiting:
            engine.queue.withdraw(waiting)
        for step_id in entry.open:
            engine.recording.refusals.pop(step_id, None)
        if engine.memory.modes:
            engine.memory.forget(entry)
        engine.admission.moved(entry)
        engine.cache.leave(entry)
