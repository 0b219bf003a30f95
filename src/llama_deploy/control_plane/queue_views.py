"""Queues as the API shows them, and the reason why a step waits.

What waits for a service stands in the queue, for an instance that is free, or at the gate, for a limit. Reads memory
and changes nothing.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane.gate import Guest, turn_of
from llama_deploy.control_plane.retries import attempts_so_far
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import ServiceNotFoundError
from llama_deploy.types import QueueView, ServiceView, WaitingPage, WaitingStep
from llama_deploy.types.options import PRIORITY_DEFAULT
from llama_deploy.types.reserved import PERSON_SERVICE, TIMER_SERVICE

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

PLACES_COUNTED_MAX = 1_000
"""A place further back than this is not counted."""

CALLS_SHOWN = 3
"""So many of the tasks that a step has called are named where it is said what it waits for."""


class QueueViews:
    """Read-only answers about what waits in one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- services and queues ----------------------------------------------------------------------------------------

    def services(self) -> list[ServiceView]:
        """Every known service, by name."""
        return [self.service(name) for name in self._engine.registry.names()]

    def service(self, name: str) -> ServiceView:
        """One service. Raises `ServiceNotFoundError`."""
        engine = self._engine
        if name not in engine.registry.services:
            raise ServiceNotFoundError(
                f"there is no service {name!r}", why="known: " + (", ".join(sorted(engine.registry.services)) or "none")
            )
        statistics = engine.releases.statistics(name)
        waiting, oldest_s = statistics.waiting, statistics.oldest_s
        gate = engine.admission.gates.get(name)
        if gate is not None and (oldest := gate.room.oldest()) is not None:
            waiting += gate.waiting
            oldest_s = max(oldest_s or 0.0, engine.clock.now() - oldest.since)
        view = engine.registry.view(name, waiting, oldest_s)
        limits = engine.admission.limits_of(name)
        view.limits = None if limits.nothing else limits
        view.limits_set = engine.admission.overrides.get(name)
        view.paused = engine.admission.pauses.get(name)
        if view.paused is not None and view.state == "up":
            view.state = "paused"
        view.held_back = {} if gate is None else gate.held_back(engine.clock.now())
        return view

    def queue(self, name: str) -> QueueView:
        """What waits for one service. Raises `ServiceNotFoundError`."""
        return queue_of(self.service(name))

    def waiting(self, name: str, *, first: int, limit: int) -> WaitingPage:
        """What waits for a service, in the order in which it would go if nothing changed, from place `first` on."""
        self.service(name)
        engine = self._engine
        listed = [envelope.step_id for envelope in engine.releases.peek(name, limit=first + limit + 1)]
        gate = engine.admission.gates.get(name)
        if gate is not None:
            own = (waiting.name for waiting in gate.room.in_order() if isinstance(waiting.item, Guest))
            listed += islice(own, max(0, first + limit + 1 - len(listed)))
        items = []
        for place, step_id in enumerate(listed[first : first + limit], start=first + 1):
            entry = engine.cache.tasks.get(step_id.rpartition(":")[0])
            step = entry.open.get(step_id) if entry is not None else None
            if entry is not None and step is not None:
                items.append(self._waiting_step(entry, step, place))
        total = engine.releases.depth(name) if engine.queue.capabilities.lists else 0
        if gate is not None:
            total += gate.waiting
        return WaitingPage(items=items, total=total, next=first + limit if len(listed) > first + limit else None)

    def _waiting_step(self, entry: TaskEntry, step: OpenStep, place: int) -> WaitingStep:
        priority, key = turn_of(entry, step)
        return WaitingStep(
            place=place,
            step_id=step.step_id,
            task_id=entry.row.task_id,
            session_id=entry.row.session_id,
            attempt=step.attempt,
            priority=priority,
            key=key or None,
            waiting_s=max(0.0, self._engine.clock.now() - step.due_since),
            reason=self.reason(entry, step, counted=False),
        )

    # --- reasons ----------------------------------------------------------------------------------------------------

    def task_reason(self, entry: TaskEntry) -> str | None:
        """Why a task does not move, in words; `None` while an instance works on it."""
        if entry.row.paused:
            return f"somebody to resume it (paused{entry.paused_because})"
        if entry.busy:
            return "a decision of the orchestrator"
        now = self._engine.clock.now()
        if entry.begins_at > now:
            return f"its beginning, in {entry.begins_at - now:.1f} s"
        reasons = []
        for step in entry.open.values():
            reason = self.reason(entry, step)
            if reason is None:
                return None
            reasons.append(reason)
        return "; ".join(dict.fromkeys(reasons)) or None

    def reason(self, entry: TaskEntry, step: OpenStep, *, counted: bool = True) -> str | None:
        """Why a step waits, in words; `None` while an instance works on it.

        `counted`: with how many go before it, which takes longer the more there are.
        """
        engine = self._engine
        if (others := _others(step) or (engine.memory.reason(step) if engine.memory.modes else None)) is not None:
            return others
        now = engine.clock.now()
        if step.service == TIMER_SERVICE:
            return f"a timer, due in {max(0.0, step.due_at - now):.1f} s" + (f" ({step.tag})" if step.tag else "")
        gate = engine.admission.gates.get(step.service)
        if gate is not None and (guest := gate.room.get(step.step_id)) is not None:
            reason = gate.reason(guest, now)
            return reason + (self._place_at(entry, step) if counted and gate.paused is None else "")
        if step.claimed_by:
            return None
        if step.due_at > now:
            before = attempts_so_far(step)
            return f"attempt {step.attempt} of {step.service}, due in {step.due_at - now:.1f} s" + (
                f" ({before})" if before else ""
            )
        if (missing := self._nobody(entry, step)) is not None:
            return missing
        return f"a free instance of {step.service}" + (self._place_at(entry, step) if counted else "")

    def _nobody(self, entry: TaskEntry, step: OpenStep) -> str | None:
        """That nobody serves a step, in words; `None` where somebody does."""
        registry = self._engine.registry
        if registry.has_instance(step.service):
            return self._engine.releases.missing(entry, step)
        if registry.serves(step.service):
            return f'nobody serves "{step.service}" now (its instances are expected back)'
        known = "no instance of it is connected" if step.service in registry.services else "it was never registered"
        return f'nobody serves "{step.service}" ({known})'

    def _place_at(self, entry: TaskEntry, step: OpenStep) -> str:
        """How many go before a step, with the priority and the key that it goes by."""
        engine = self._engine
        gate = engine.admission.gates.get(step.service)
        if gate is not None and step.step_id in gate.room:
            names = (guest.name for guest in islice(gate.room.in_order(), PLACES_COUNTED_MAX))
        else:
            names = (e.step_id for e in engine.queue.peek(step.topic, limit=PLACES_COUNTED_MAX))
        ahead = next((place for place, name in enumerate(names) if name == step.step_id), None)
        priority, key = turn_of(entry, step)
        where = " at its control plane" if engine.leadership.shared else ""
        turn = [f"{f'{PLACES_COUNTED_MAX} or more' if ahead is None else ahead or 'none'} ahead of it{where}"]
        if priority != PRIORITY_DEFAULT:
            turn.append(f"priority {priority}")
        if key:
            turn.append(f"key {key}")
        return f" ({', '.join(turn)})"


def queue_of(view: ServiceView) -> QueueView:
    """What waits for a service."""
    return QueueView(
        name=view.definition.service_name,
        state=view.state,
        waiting=view.waiting,
        oldest_waiting_s=view.oldest_waiting_s,
        running=view.running,
        instances=len(view.instances),
        answered=view.answered,
        paused=view.paused,
        limits=view.limits,
        held_back=view.held_back,
        missing=view.missing,
    )


def _others(step: OpenStep) -> str | None:
    """For whom a step waits that runs, or could run: a person, the tasks that it has called; `None` for nobody."""
    if step.asking:
        prompt = msgspec.json.decode(step.prompt or b"{}")
        prompt = prompt.get("prompt") if isinstance(prompt, dict) else prompt
        asks = "" if step.service == PERSON_SERVICE else f" for {step.service}"
        return f"a person's input{asks}" + (f": {prompt}" if prompt else "")
    if step.awaited:
        called = sorted(filter(None, step.awaited.values()))
        if not called:
            return f"a place at its instance of {step.service}"
        more = f" and {len(called) - CALLS_SHOWN} more" if len(called) > CALLS_SHOWN else ""
        which = "tasks" if len(called) > 1 else "task"
        return f"{which} that {step.service} called: {', '.join(called[:CALLS_SHOWN])}{more}"
    return None
