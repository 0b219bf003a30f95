"""Where service instances connect: one port per connection, over a WebSocket or inside this process.

A port takes deliveries from the queue while it has credits, hands operations over in frames, and turns what the
instance says into calls of the engine. It knows nothing of transports: whoever makes one gives it a function that
sends a batch of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from llama_deploy.control_plane.children import Children
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.leases import Leases
from llama_deploy.control_plane.port import Port, Send, Unserved
from llama_deploy.control_plane.signals import Signals
from llama_deploy.errors import (
    InvalidRequestError,
    ServiceNotFoundError,
)
from llama_deploy.messages.frames import (
    Drain,
)
from llama_deploy.messages.mesh import Claimed, NotLed, Planes
from llama_deploy.runtime import SilenceTimer, Timer
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types import InstanceView
from llama_deploy.types.options import SECONDS_MAX

__all__ = ["Gateway", "Port", "Send"]

log = get_logger("llama_deploy.gateway")


class Gateway:
    """All connected instances of one control plane."""

    def __init__(self, engine: Engine, signals: Signals, children: Children) -> None:
        self.engine = engine
        self.signals = signals
        self.children = children
        self.ports: dict[Port, None] = {}
        self.leases = Leases(self)
        self._dropped: dict[str, Timer] = {}
        self._planes: list[str] | None = None
        if engine.leadership.shared:
            engine.leadership.watchers.add(self._members_changed)

    # --- several control planes -------------------------------------------------------------------------------------

    def planes(self) -> list[str] | None:
        """Where instances find all control planes; `None` where there is one."""
        leadership = self.engine.leadership
        return [member.url for member in leadership.members() if member.url] if leadership.shared else None

    def _members_changed(self) -> None:
        planes = self.planes()
        if planes != self._planes and planes is not None:
            self._planes = planes
            self._tell(Planes(planes))

    def claimed(self, shards: Sequence[int]) -> None:
        """Further sessions are led here: instances offer what they hold of them."""
        self._tell(Claimed(list(shards), self.engine.store.shards_count))

    def not_led(self, task_ids: Collection[str], shards: Sequence[int]) -> None:
        """These tasks, and all of these shards, are led by others: their steps hold no places here, but there."""
        for port in self.ports:
            port.let_go(task_ids)
        self._tell(NotLed([], list(shards), self.engine.store.shards_count))

    def _tell(self, operation: Any) -> None:
        for port in self.ports:
            if port.meshed:
                port.post(operation)

    # --- connections ------------------------------------------------------------------------------------------------

    def attach(
        self,
        send: Send,
        *,
        close: Callable[[], None],
        in_process: bool = False,
        unserved: Unserved = lambda _: None,
    ) -> Port:
        """A new connection. `close` ends it from this side; the transport calls `Port.closed` when it has ended.

        `unserved` says of services why the instance may not serve them, `None` where it may.
        """
        port = Port(self, send, close, in_process=in_process)
        port.unserved = unserved
        self.ports[port] = None
        self.leases.watch()
        return port

    def stop(self) -> None:
        """Close every connection; instances keep what is unanswered and come back with it."""
        self.leases.stop()
        for timer in self._dropped.values():
            timer.cancel()
        for port in tuple(self.ports):
            port.flush()
            port.close()

    def drain_instances(self) -> None:
        """Ask every instance to finish what it holds and to take nothing new."""
        for port in self.ports:
            port.post(Drain())

    def drain_instance(self, service: str, instance_id: str, *, timeout_s: float | None = None) -> InstanceView:
        """Ask an instance to finish what it holds, take nothing new and leave; how it stands now. It may be repeated.

        What it has not finished after `timeout_s` it hands back; without, it takes as long as it takes. Raises
        `ServiceNotFoundError`, and `InvalidRequestError` for an instance in a control plane's own process.
        """
        found = self.engine.registry.services.get(service)
        port = found.instances.get(instance_id) if found is not None else None
        if not isinstance(port, Port):
            known = sorted(found.instances) if found is not None else []
            raise ServiceNotFoundError(
                f"{service} has no instance {instance_id!r}", why="instances: " + (", ".join(known) or "none")
            )
        if port.stays:
            raise InvalidRequestError(
                f"instance {instance_id} lives in a control plane's own process, and could not come back",
                fix=f"pause the service: llamactl services pause {service}",
            )
        port.post(Drain(SECONDS_MAX if timeout_s is None else timeout_s))
        return port.view(service)

    def returned(self, instance_id: str) -> None:
        """An instance whose connection had dropped is here again, in time."""
        timer = self._dropped.pop(instance_id, None)
        if timer is not None:
            timer.cancel()

    def dropped(self, port: Port, *, lost_now: bool) -> None:
        """A connection ended without a goodbye: wait for its instance a moment, then give its steps to others."""
        engine = self.engine

        def give_up() -> None:
            self._dropped.pop(port.instance_id, None)
            self.engine.registry.unregister(port, lost=True)
            port.stopping.gone()
            self.signals.lost(port.adoption.claimed(), port.instance_id, f"instance {port.instance_id} was lost")

        if engine.stopping:  # the instance keeps what it holds, and brings it to the next control plane
            engine.registry.unregister(port, lost=True)
        elif lost_now:
            give_up()
        else:
            grace_s = engine.settings.reconnect_grace_s
            when = engine.clock.now() + grace_s
            self._dropped[port.instance_id] = SilenceTimer(engine.clock, when, give_up, again_s=grace_s)
