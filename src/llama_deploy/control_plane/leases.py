"""Which connected instances are silent for too long: their steps go to others. Only time passes here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_deploy.runtime import SilenceTimer
from llama_deploy.runtime.logs import get_logger

if TYPE_CHECKING:
    from llama_deploy.control_plane.gateway import Gateway

log = get_logger("llama_deploy.gateway")


class Leases:
    """The leases of the instances of one gateway; each thing that an instance says extends its own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._timer: SilenceTimer | None = None

    def watch(self) -> None:
        """Look again when the first lease may have run out; there is no timer while nobody is connected."""
        if self._timer is not None or not self._gateway.ports:
            return
        oldest = min((port.last_seen_at for port in self._gateway.ports if not port.in_process), default=None)
        if oldest is not None:
            engine = self._gateway.engine
            due_at, again_s = oldest + engine.settings.lease_s, engine.settings.heartbeat_s
            self._timer = SilenceTimer(engine.clock, due_at, self._check, again_s=again_s)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        engine = self._gateway.engine
        now = engine.clock.now()
        for port in tuple(self._gateway.ports):
            if not port.in_process and now - port.last_seen_at >= engine.settings.lease_s:
                log.warning("instance is silent, its steps go to others", instance=port.instance_id)
                port.closed(lost_now=True)
                port.close()
        self.watch()
