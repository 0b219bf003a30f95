"""A control plane put together: engine, signals, sweeper and the two gateways over one store and one queue.

It has no network of its own; the HTTP server and the embedded `Deployment` both stand on this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from llama_deploy.control_plane.bulk import Bulk
from llama_deploy.control_plane.children import Children
from llama_deploy.control_plane.client_gateway import ClientGateway
from llama_deploy.control_plane.copies import Copies
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.erasure import Erasure
from llama_deploy.control_plane.exports import Exports
from llama_deploy.control_plane.gateway import Gateway
from llama_deploy.control_plane.imports import Imports
from llama_deploy.control_plane.pauses import Pauses
from llama_deploy.control_plane.redriving import DeadLetters
from llama_deploy.control_plane.repeats import Repeats
from llama_deploy.control_plane.retention import Retention
from llama_deploy.control_plane.schedules import Schedules
from llama_deploy.control_plane.settings import EngineSettings
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.sweeper import Sweeper
from llama_deploy.control_plane.views import Views
from llama_deploy.message_queues import MessageQueue, SimpleMessageQueue
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.runtime import Clock, failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores import StateStore
from llama_deploy.types.redaction import Redaction
from llama_deploy.types.schedules import Schedule
from llama_deploy.types.webhooks import WebhookSettings

log = get_logger("llama_deploy.control_plane")

QUEUE_DEPTH_MAX = 1_000_000
"""Depth of the in-process queue: it holds what the engine holds in memory anyway, and that is limited there."""


class ControlPlane:
    """Decides, records, and has work carried out. `start` and `stop` it on one event loop.

    `schedules` are those of a deployment file, which is the only one to change them; `None` says that there is no file,
    and those of an earlier one stay. `redact` are patterns of keys whose values people do not get to see. A `seed`
    makes the jitter of its delays repeatable, for simulations.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        queue: MessageQueue | None = None,
        orchestrator: BaseOrchestrator | None = None,
        orchestrators: Mapping[str, BaseOrchestrator] | None = None,
        settings: EngineSettings | None = None,
        clock: Clock | None = None,
        default_service: str | None = None,
        name: str = "default",
        seed: int | None = None,
        webhooks: WebhookSettings | None = None,
        schedules: Mapping[str, Schedule] | None = None,
        redact: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.store = store
        self.queue = queue or SimpleMessageQueue(depth_max=QUEUE_DEPTH_MAX, clock=clock)
        self.engine = Engine(
            store=store,
            queue=self.queue,
            orchestrator=orchestrator or SimpleOrchestrator(),
            orchestrators=orchestrators,
            settings=settings,
            clock=clock,
            default_service=default_service,
            seed=seed,
            webhooks=webhooks,
        )
        self.engine.redact = Redaction(redact)
        self.webhooks = webhooks or WebhookSettings()
        self.signals = Signals(self.engine)
        self.pauses = Pauses(self.engine, self.signals)
        self.sweeper = Sweeper(self.engine, self.signals)
        self.schedules = Schedules(self.engine, self.signals)
        self._schedules_of_file = schedules
        self.retention = Retention(self.engine)
        self.copies = Copies(store)
        self.children = Children(self.engine, self.signals)
        self.gateway = Gateway(self.engine, self.signals, self.children)
        self.erasure = Erasure(self.engine, self.signals)
        self.clients = ClientGateway(self.engine)
        self.views = Views(self.engine)
        self.repeats = Repeats(self.engine)
        self.exports, self.imports = Exports(self.engine), Imports(self.engine)
        self.dead_letters = DeadLetters(self.engine, pauses=self.pauses, repeats=self.repeats)
        self.bulk = Bulk(self.engine, signals=self.signals, pauses=self.pauses, repeats=self.repeats, views=self.views)
        self.started_at = 0.0
        self.steps_carried_on = 0
        """Unfinished steps of an earlier run that were found at the start."""
        self.ready = False
        """Whether requests are served: after recovery has begun, until `stop`."""

    async def start(self) -> None:
        """Open the store, know the services of an earlier run, take up what was unfinished."""
        await self.store.open()
        failpoint("plane.store_opened")
        self.copies.remove_leftovers()
        await self.queue.start()
        self.engine.registry.restore(await self.store.load_services())
        await self.engine.admission.restore()
        self.steps_carried_on = await self.sweeper.start()
        if self.steps_carried_on:
            self.engine.admission.close_until(self.engine.clock.now() + self.engine.settings.recovery_grace_s)
        await self.schedules.start(self._schedules_of_file)
        self.retention.start()
        self.engine.spawn(self.children.recover())
        self.engine.spawn(self.erasure.go_on())
        self.started_at = self.engine.clock.now()
        self.ready = True
        log.info("control plane started", store=self.store.location)

    def refuse_new_work(self) -> None:
        """The first step of stopping: nothing new is taken, what is under way goes on."""
        self.ready = False
        self.engine.stopping = True

    async def stop(self, *, close_timeout_s: float = 10.0) -> None:
        """Take no new tasks, let what is being answered be recorded, close every connection and the store.

        Steps that run in instances go on; their answers are kept there and given to the next control plane.
        """
        self.refuse_new_work()
        failpoint("plane.before_disconnect")
        self.clients.stop()
        self.gateway.stop()
        await self.schedules.stop()
        await self.sweeper.stop()
        await self.retention.stop()
        await self.engine.stop()
        await self.queue.stop()
        failpoint("plane.before_close")
        try:
            async with asyncio.timeout(close_timeout_s):
                await self.store.close()
        except TimeoutError:
            log.exception("stopped with transitions that could not be recorded", count=self.store.backlog)

    async def status(self) -> dict[str, Any]:
        """What the control plane is doing, in numbers."""
        statistics = self.engine.statistics
        return {
            "name": self.name,
            "redact": list(self.engine.redact.patterns),
            "ready": self.ready,
            "started_at": self.started_at,
            "store": {"location": self.store.location, "healthy": self.store.healthy, "backlog": self.store.backlog},
            "tasks": await self.store.count_tasks(),
            "dead_letters": await self.store.count_dead(),
            "unfinished_in_memory": self.engine.cache.unfinished,
            "services": {name: self.engine.registry.has_instance(name) for name in self.engine.registry.names()},
            "instances": self.engine.registry.instances_count(),
            "clients": len(self.clients.ports),
            "statistics": {name: getattr(statistics, name) for name in statistics.__dataclass_fields__},
            "commits": self.store.statistics.commits,
            "transitions": self.store.statistics.transitions,
        }
