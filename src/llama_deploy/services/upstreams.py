"""All control planes that one instance is connected to, and which of them each of its steps belongs to.

Where several share a store, the instance is connected to each. A step belongs to the one that sent it, until another
has adopted it: the one that leads its task by then. What nobody has acknowledged is offered to all of them whenever
one says that it leads more, or less, than before; so it reaches whoever wants it, and is never given up here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llama_deploy.messages.frames import HeldStep
from llama_deploy.messages.mesh import Adopted, Claimed, NotLed, Offer
from llama_deploy.runtime import failpoint
from llama_deploy.services.steps import RunningStep
from llama_deploy.services.turns import Turns
from llama_deploy.services.upstream import Upstream


class Upstreams:
    """The control planes of one runner. `repeat` says again what is not acknowledged of a step; `stop` drops one."""

    def __init__(
        self,
        steps: Mapping[str, RunningStep],
        turns: Turns,
        *,
        repeat: Callable[[RunningStep], None],
        stop: Callable[[str, str], None],
    ) -> None:
        self._steps = steps
        self._turns = turns
        self._repeat = repeat
        self._stop = stop
        self.main = Upstream()
        """The one that is there before any link has said which there are."""
        self._all: list[Upstream] = [self.main]
        self.ready = asyncio.Event()
        """Set while any of them has the instance registered."""
        self.carrier = self.main
        """The one over which contents travel."""
        self.carrier_lost: Callable[[], None] = lambda: None
        """Called when its connection is gone."""

    def attach(self, upstream: Upstream) -> None:
        """One more control plane, which is not connected yet."""
        self._all = [one for one in self._all if one is not self.main or one.ready]
        self._all.append(upstream)
        self._turns.limited = len(self._all) > 1

    def detach(self, upstream: Upstream) -> None:
        """It is no control plane of this store any more: its steps are for others to adopt."""
        self.disconnected(upstream)
        self._all = [one for one in self._all if one is not upstream]
        self._turns.limited = len(self._all) > 1
        for step in self._steps.values():
            if step.upstream is upstream:
                step.upstream = None

    def carry(self, operation: Any) -> None:
        """Say something about a content."""
        self.carrier.post(operation)

    def tell_all(self, operation: Any) -> None:
        """Say something that concerns each of them."""
        for upstream in self._all:
            upstream.post(operation)

    def flush_all(self) -> None:
        """Send what waits, to each."""
        for upstream in self._all:
            upstream.flush()

    # --- connections ------------------------------------------------------------------------------------------------

    def disconnected(self, upstream: Upstream) -> None:
        """A connection is gone."""
        upstream.ready = False
        left = [one for one in self._all if one.ready]
        if not left:
            self.ready.clear()
        if self.carrier is upstream:
            self.carrier_lost()
            self.carrier = left[0] if left else upstream

    def welcomed(self, upstream: Upstream, adopted: Collection[str] | None, *, meshed: bool) -> None:
        """Registered (again): steps that are its own are spoken of here from now on. `None` stands for all."""
        upstream.welcomed()
        upstream.meshed = meshed
        if not self.carrier.ready:
            self.carrier = upstream
        self.ready.set()
        for step_id, step in list(self._steps.items()):
            if adopted is None or step_id in adopted:
                self._adopt(step, upstream)
            elif step.upstream is upstream:
                step.upstream = None
                self._offer([step], [one for one in self._all if one is not upstream])

    # --- whose steps are whose --------------------------------------------------------------------------------------

    def listens_to(self, step: RunningStep, upstream: Upstream) -> bool:
        """Whether what this control plane says about a step counts: not where another one is known to lead it."""
        return step.upstream is upstream or step.upstream is None or not step.upstream.ready

    def _adopt(self, step: RunningStep, upstream: Upstream) -> None:
        step.upstream = upstream
        self._repeat(step)

    def adopted(self, operation: Adopted, upstream: Upstream) -> None:
        """A control plane has taken, or does not want, what it was offered."""
        for step_id in operation.step_ids:
            step = self._steps.get(step_id)
            if step is not None:
                failpoint("upstreams.adopted")
                self._adopt(step, upstream)
        for step_id in operation.disowned:
            step = self._steps.get(step_id)
            if step is not None and step.upstream is not upstream:
                self._stop(step_id, "the step went to another instance")

    def claimed(self, operation: Claimed, upstream: Upstream) -> None:
        """A control plane leads more than before: it may want what others have sent."""
        steps = [step for step in self._steps.values() if step.upstream is not upstream]
        if operation.shards:
            steps = _of_shards(steps, operation.shards, operation.of)
        self._offer(steps, [upstream])

    def not_led(self, operation: NotLed, upstream: Upstream) -> None:
        """A control plane leads less than before: others may want what it has sent."""
        named = set(operation.step_ids)
        mine = [step for step in self._steps.values() if step.upstream in (upstream, None)]
        gone = [step for step in mine if step.delivery.step_id in named]
        gone += [step for step in _of_shards(mine, operation.shards, operation.of) if step not in gone]
        for step in gone:
            step.upstream = None
        # What it says about steps may be older than what it has said about shards: it may lead them again by now.
        self._offer(gone, [one for one in self._all if named or one is not upstream])

    def _offer(self, steps: list[RunningStep], to: list[Upstream]) -> None:
        held = [HeldStep(step.delivery.step_id, step.attempt) for step in steps]
        for upstream in to if held else ():
            if upstream.ready and upstream.meshed:
                failpoint("upstreams.before_offer")
                upstream.post(Offer(held))


def _of_shards(steps: Sequence[RunningStep], shards: Collection[int], of: int) -> list[RunningStep]:
    """Those of the steps whose sessions are in these shards."""
    if not shards:
        return []
    from llama_deploy.state_stores.shards import shard_of  # not before there are several control planes

    return [step for step in steps if shard_of(step.delivery.session_id, of) in shards]
