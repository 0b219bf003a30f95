"""A control plane put together: engine, signals, sweeper and the two gateways over one store and one queue.

It has no network of its own; the HTTP server and the embedded `Deployment` both stand on this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llama_deploy._version import __version__
from llama_deploy.control_plane.across import Across
from llama_deploy.control_plane.bulk import Bulk
from llama_deploy.control_plane.children import Children
from llama_deploy.control_plane.client_gateway import ClientGateway
from llama_deploy.control_plane.copies import Copies
from llama_deploy.control_plane.counting import Counting
from llama_deploy.control_plane.counting_links import CountingLink
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.erasure import Erasure
from llama_deploy.control_plane.exports import Exports
from llama_deploy.control_plane.forwarder import Forwarder
from llama_deploy.control_plane.gateway import Gateway
from llama_deploy.control_plane.identity import identity
from llama_deploy.control_plane.imports import Imports
from llama_deploy.control_plane.leadership import Leadership, Sharing
from llama_deploy.control_plane.migrations import Migrations
from llama_deploy.control_plane.pauses import Pauses
from llama_deploy.control_plane.peers import Peers
from llama_deploy.control_plane.redriving import DeadLetters
from llama_deploy.control_plane.repeats import Repeats
from llama_deploy.control_plane.retention import Retention
from llama_deploy.control_plane.routing import Routing
from llama_deploy.control_plane.schedules import Schedules
from llama_deploy.control_plane.settings import EngineSettings
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.sweeper import Sweeper
from llama_deploy.control_plane.takeover import Takeover
from llama_deploy.control_plane.task_cache import not_found
from llama_deploy.control_plane.views import Views
from llama_deploy.message_queues import MessageQueue
from llama_deploy.message_queues.simple import InProcessQueue
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.runtime import Clock, failpoint
from llama_deploy.runtime.line_log import LineLog
from llama_deploy.runtime.logs import get_logger, leave_out
from llama_deploy.state_stores import StateStore
from llama_deploy.types import TaskDefinition, TaskView
from llama_deploy.types.redaction import Redaction
from llama_deploy.types.schedules import Schedule
from llama_deploy.types.webhooks import WebhookSettings

log = get_logger("llama_deploy.control_plane")

QUEUE_DEPTH_MAX = 1_000_000
"""Depth of the in-process queue: it holds what the engine holds in memory anyway, and that is limited there."""


class ControlPlane:
    """Decides, records, and has work carried out. `start` and `stop` it on one event loop.

    `schedules` are those of a deployment file, which is the only one to change them; `None` says that there is no file,
    and those of an earlier one stay. With `sharing`, other control planes may share the store (which is opened so that
    it claims nothing by itself), and this one leads its part of the sessions. `redact` are patterns of keys whose
    values people do not get to see. A `seed` makes the jitter of its delays repeatable, for simulations.
    """

    log: LineLog | None = None
    """What this process and those that it has started print, where somebody keeps it."""

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
        sharing: Sharing | None = None,
    ) -> None:
        self.name = name
        self.store = store
        settings = settings or EngineSettings()
        self.leadership = Leadership(store, sharing, lease_s=settings.shard_lease_s)
        self.queue = queue or InProcessQueue(depth_max=QUEUE_DEPTH_MAX, clock=clock)
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
            leadership=self.leadership,
        )
        self.engine.redact = Redaction(redact)
        self.webhooks = webhooks or WebhookSettings()
        self.signals = Signals(self.engine)
        self.pauses = Pauses(self.engine, self.signals)
        self.migrations, self.sweeper = Migrations(self.engine, self.signals), Sweeper(self.engine, self.signals)
        self.routing, self.peers = Routing(self.engine), Peers()
        self.forwarder = Forwarder(self.engine, self.routing, self.peers)
        self.schedules = Schedules(self.engine, self.signals, self.forwarder, self.routing)
        self._schedules_of_file = schedules
        self.retention = Retention(self.engine)
        self.copies = Copies(store)
        self.children = Children(self.engine, self.signals)
        self.gateway = Gateway(self.engine, self.signals, self.children)
        self.erasure = Erasure(self.engine, self.signals, self.forwarder)
        self.takeover = Takeover(self.engine, self.gateway, (self.children.recover, self.erasure.go_on))
        self.clients = ClientGateway(self.engine, self.routing, self.forwarder.relays)
        self.views, self.repeats = Views(self.engine), Repeats(self.engine)
        self.exports, self.imports = Exports(self.engine), Imports(self.engine)
        self.dead_letters = DeadLetters(self.engine, self.pauses, self.repeats, self.forwarder)
        self.bulk = Bulk(
            self.engine,
            signals=self.signals,
            pauses=self.pauses,
            migrations=self.migrations,
            repeats=self.repeats,
            dead_letters=self.dead_letters,
            views=self.views,
            forwarder=self.forwarder,
        )
        self.across = Across(self)
        self.counting = Counting(self.engine, CountingLink) if self.leadership.shared else None
        self.started_at = 0.0
        self.steps_carried_on = 0
        """Unfinished steps of an earlier run that were found at the start."""
        self.ready = False
        """Whether requests are served: after recovery has begun, until `stop`."""

    async def start(self) -> None:
        """Open the store, know the services of an earlier run, take up what was unfinished."""
        leave_out(self, self.engine.redact.text if self.engine.redact else None)
        await self.store.open()
        failpoint("plane.store_opened")
        try:
            await self.leadership.start()
        except BaseException:
            await self.store.close()
            raise
        self.copies.remove_leftovers()
        if not self.queue.capabilities.in_process:
            self.queue.seat = self.leadership.seat
            self.queue.identify(await identity(self.store))
        self.queue.on_return = self.sweeper.queue_returned
        await self.queue.start()
        self.engine.registry.restore(await self.store.load_services())
        await self.engine.admission.restore()
        await self.engine.releases.restore()
        for name in self.engine.registry.services:
            self.engine.memory.refresh(name)
        self.engine.ready = True  # what is gained from here on is taken up by itself
        self.steps_carried_on = await self.sweeper.start()
        if self.steps_carried_on:
            self.engine.admission.close_until(self.engine.clock.now() + self.engine.settings.recovery_grace_s)
        await self.schedules.start(self._schedules_of_file)
        self.retention.start()
        self.engine.common.start()
        self.engine.spawn(self.children.recover())
        self.engine.spawn(self.erasure.go_on())
        self.started_at = self.engine.clock.now()
        self.ready = True
        log.info("control plane started", store=self.store.location)

    async def submit(self, definition: TaskDefinition) -> TaskView:
        """Have a task recorded, whoever leads its session, and show it. Raises what it is refused with."""
        if not self.routing.shared:
            return self.views.task(await self.engine.submissions.submit_and_wait(definition))
        return await self.show(await self.forwarder.submit(definition))

    async def show(self, task_id: str) -> TaskView:
        """A task as it stands, also where another control plane leads it. Raises `TaskNotFoundError`."""
        entry = self.engine.cache.tasks.get(task_id)
        if entry is not None:
            return self.views.task(entry)
        row = await self.store.load_task(task_id)
        if row is None:
            raise not_found(task_id)
        return self.views.row(row)

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
        if self.counting is not None:
            self.counting.stop()
        self.gateway.stop()
        await self.schedules.stop()
        await self.sweeper.stop()
        await self.retention.stop()
        await self.engine.common.stop()
        await self.engine.stop()
        await self.peers.close()  # nobody asks others any more
        await self.queue.stop()
        self.engine.ready = False
        await self.leadership.leave()
        failpoint("plane.before_close")
        try:
            async with asyncio.timeout(close_timeout_s):
                await self.store.close()
        except TimeoutError:
            log.exception("stopped with transitions that could not be recorded", count=self.store.backlog)
        leave_out(self, None)

    def _queue_status(self) -> dict[str, Any]:
        health = msgspec.to_builtins(self.queue.health())
        waiting = sum(self.engine.releases.depth(name) for name in self.engine.registry.services)
        return {**health, "waiting": waiting, "capabilities": msgspec.to_builtins(self.queue.capabilities)}

    async def status(self) -> dict[str, Any]:
        """What this control plane is doing, in numbers."""
        statistics = self.engine.statistics
        instance_ids = self.engine.registry.instance_ids()
        return {
            "name": self.name,
            "redact": list(self.engine.redact.patterns),
            "ready": self.ready,
            "version": __version__,
            "started_at": self.started_at,
            "now": self.engine.clock.now(),
            "store": {"location": self.store.location, "healthy": self.store.healthy, "backlog": self.store.backlog},
            "queue": self._queue_status(),
            "tasks": await self.store.count_tasks(),
            "dead_letters": await self.store.count_dead(),
            "unfinished_in_memory": self.engine.cache.unfinished,
            "services": {name: self.engine.registry.has_instance(name) for name in self.engine.registry.names()},
            "instances": len(instance_ids),
            **({"instance_ids": instance_ids} if self.leadership.shared else {}),
            "clients": len(self.clients.ports),
            "statistics": {name: getattr(statistics, name) for name in statistics.__dataclass_fields__},
            "leadership": self.leadership.status(),
            "commits": self.store.statistics.commits,
            "transitions": self.store.statistics.transitions,
        }
