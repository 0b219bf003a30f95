"""Code of one instance that was told to stop, and has not said yet that it has.

Its step is taken away from it, but its places are not: that at its instance, and that at the gate of its service, are
counted under a name of the code's own until it has ended. So neither `concurrency` nor a limit lets another step begin
beside it. An instance says so within the grace; one that does not, or that is lost, is not waited for any longer.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llama_deploy.control_plane.places import Places
from llama_deploy.runtime.clock import Timer

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine


class StoppingCode:
    """What one port waits for to stop."""

    def __init__(self, engine: Engine, places: Places) -> None:
        self._engine = engine
        self._places = places
        self._waited_for: dict[str, Timer] = {}

    def take_away(self, step_id: str, attempt: int) -> None:
        """A step is taken away: its code keeps the places that it has until it has `ended`."""
        engine, name = self._engine, _name(step_id, attempt)
        if not self._places.keep(step_id, name):
            return
        engine.admission.keep(step_id, name)
        when = engine.clock.now() + 2 * engine.settings.cancel_grace_s + engine.settings.heartbeat_s
        self._waited_for[name] = engine.clock.call_at(when, partial(self._let_go, name))

    def ended(self, step_id: str, attempt: int) -> None:
        """The code of an attempt has ended: its places are free. Repeating it does nothing."""
        self._let_go(_name(step_id, attempt))

    def gone(self) -> None:
        """The instance does not come back: what ran there has ended with it, as far as anybody can know."""
        for name in tuple(self._waited_for):
            self._let_go(name)

    def _let_go(self, name: str) -> None:
        timer = self._waited_for.pop(name, None)
        if timer is not None:
            timer.cancel()
        self._places.free(name)
        self._engine.admission.release(name)  # also where an earlier connection of the instance has kept it


def _name(step_id: str, attempt: int) -> str:
    return f"{step_id}/{attempt}"
