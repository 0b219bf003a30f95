"""How deliveries get from the queue to one connected instance: claimed, and sent on where they still stand.

A queue may repeat, and one that outlives a control plane may bring what an earlier run has published. What nobody is to
do any more is dropped here, and costs no more than a look into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane.places import Places
from llama_deploy.control_plane.releases import topic_of
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import ShardLostError
from llama_deploy.message_queues import Envelope
from llama_deploy.runtime import SilenceTimer, failpoint
from llama_deploy.types import ServiceDefinition

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine
    from llama_deploy.control_plane.port import Port


class Intake:
    """What one port takes from the queue. `hold` notes a step that goes to the instance."""

    def __init__(self, engine: Engine, port: Port, places: Places, hold: Callable[[str, int, str], None]) -> None:
        self._engine = engine
        self._port = port
        self._places = places
        self._hold = hold
        self._closed = False
        self._services: dict[str, str] = {}
        """By topic: whose steps wait there."""

    def open(self, definitions: Iterable[ServiceDefinition]) -> None:
        """Let work flow to the instance; what an earlier run has published, once its instances had time to return."""
        engine = self._engine
        if engine.clock.now() < engine.deliveries_from:
            again_s = engine.settings.recovery_grace_s
            SilenceTimer(engine.clock, engine.deliveries_from, partial(self.open, definitions), again_s=again_s)
        elif not self._closed:
            for definition in definitions:
                self._open(definition.service_name, definition.concurrency)

    def _open(self, service: str, capacity: int) -> None:
        engine = self._engine
        topic = topic_of(service, self._port.release) if engine.releases.current else service
        self._services[topic] = service
        self._places.open(service, capacity, engine.queue.subscribe(topic, self._take, credits=0))

    def change_topics(self) -> None:
        """Work of a service waits elsewhere from now on: the instance takes it from there."""
        for service, subscription in list(self._places.subscriptions.items()):
            subscription.close()
            self._open(service, self._places.capacities[service])

    def close(self) -> None:
        """Nothing new flows to the instance."""
        self._closed = True
        self._places.close()

    def _take(self, envelopes: list[Envelope]) -> None:
        """Deliveries from the queue: claim those that still stand and send them on."""
        engine, port = self._engine, self._port
        tasks, held_steps = engine.cache.tasks, port.held
        for envelope in envelopes:
            failpoint("gateway.before_claim")
            if (task_id := envelope.step_id.rpartition(":")[0]) not in tasks:  # of an earlier run, or it has ended
                if engine.leadership.shared:
                    engine.spawn(self._load(task_id, envelope))
                else:
                    engine.cache.with_entry(task_id, partial(self._take_loaded, envelope))
                continue
            held = held_steps.get(envelope.step_id)
            wanted = held != envelope.attempt and engine.claim(port.instance_id, envelope.step_id, envelope.attempt)
            if wanted:
                failpoint("gateway.after_claim")
                self._hold(envelope.step_id, envelope.attempt, self._services[envelope.topic])
                port.post(msgspec.Raw(envelope.body or engine.delivery_of(envelope.step_id)))
            if held is not None or not wanted:  # no further place is taken
                self._want_another(envelope.topic)

    async def _load(self, task_id: str, envelope: Envelope) -> None:
        try:
            entry = await self._engine.cache.load(task_id, patient=True)
        except ShardLostError:  # whoever leads it publishes it
            self._want_another(envelope.topic)
        else:
            self._take_loaded(envelope, entry)

    def _take_loaded(self, envelope: Envelope, entry: TaskEntry | None) -> None:
        """The task of a delivery is in memory now, or there is none."""
        if self._closed:
            self._engine.publish_again(envelope.step_id, envelope.attempt, entry)
        elif entry is None or entry.row.task_id not in self._engine.cache.tasks:
            self._want_another(envelope.topic)
        else:
            self._take([envelope])

    def _want_another(self, topic: str) -> None:
        subscription = self._places.subscriptions.get(self._services[topic])
        if subscription is not None:
            subscription.grant(1)
