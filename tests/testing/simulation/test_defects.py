"""The simulation can fail: each of these defects, put into the product on purpose, is found within some seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from tests.testing.simulation.seeds import first_found

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.gateway import Port
from llama_deploy.control_plane.recording import Recording
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.submissions import Submissions
from llama_deploy.control_plane.sweeper import Sweeper
from llama_deploy.control_plane.tasks import StreamState, TaskEntry
from llama_deploy.message_queues import SimpleMessageQueue
from llama_deploy.services import Runner
from llama_deploy.services.link import Link

SEEDS_MAX = 400
"""Within how many seeds a defect must be found; most are found within a few."""

Patch = Callable[[pytest.MonkeyPatch], None]
DEFECTS: dict[str, tuple[Patch, list[str] | None]] = {}


def defect(patch: Patch, *, kinds: list[str] | None = None) -> Patch:
    """A defect, named after its function; `kinds` are the faults that show it where it is a rare one."""
    DEFECTS[patch.__name__.replace("_", " ")] = (patch, kinds)
    return patch


@partial(defect, kinds=["queue misbehaves", "cut wires", "crash instance"])
def an_old_attempt_may_be_claimed(patch: pytest.MonkeyPatch) -> None:
    def claim(self: Engine, instance_id: str, step_id: str, attempt: int, **_: Any) -> bool:
        entry = self.cache.tasks.get(step_id.rpartition(":")[0])
        step = entry.open.get(step_id) if entry is not None else None
        if entry is None or step is None or step.parked:
            return False
        step.claimed_by, step.claimed_at = instance_id, self.clock.now()
        return True

    patch.setattr(Engine, "claim", claim)


@defect
def published_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    commit = Recording.commit

    def too_early(self: Recording, entry: TaskEntry, transition: Any, *args: Any, **options: Any) -> None:
        commit(self, entry, transition, *args, **options)
        steps = [entry.open[sent.step_id] for sent in transition.sent if sent.step_id in entry.open]
        if steps:
            self._engine.publish(entry, steps)

    patch.setattr(Recording, "commit", too_early)


@defect
def repeated_stream_events_are_taken(patch: pytest.MonkeyPatch) -> None:
    def take(self: StreamState, step_id: str, attempt: int, first: int, events: Any) -> Any:
        known_attempt, _ = self.attempts.get(step_id, (attempt, 0))
        return None if attempt < known_attempt else list(events)

    patch.setattr(StreamState, "take", take)


@defect
def accepted_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    record = Submissions._record_submission

    def too_early(self: Submissions, entry: TaskEntry, *args: Any) -> None:
        record(self, entry, *args)
        callbacks, entry.recorded_callbacks = entry.recorded_callbacks, []
        for callback in callbacks:
            callback(entry, None)

    patch.setattr(Submissions, "_record_submission", too_early)


@defect
def the_sweeper_sleeps(patch: pytest.MonkeyPatch) -> None:
    async def sweep(self: Sweeper) -> int:
        return 0

    patch.setattr(Sweeper, "sweep", sweep)


@defect
def what_a_lost_instance_held_stays_with_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Signals, "lost", lambda self, *args, **options: None)


@defect
def answers_are_not_repeated_after_a_reconnect(patch: pytest.MonkeyPatch) -> None:
    welcomed = Runner._welcomed

    def forgetful(self: Runner, welcome: Any) -> None:
        answered = {step_id: step for step_id, step in self.steps.items() if step.answer is not None}
        for step_id in answered:
            del self.steps[step_id]
        welcomed(self, welcome)
        self.steps.update(answered)

    patch.setattr(Runner, "_welcomed", forgetful)


@defect
def versions_of_shared_keys_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Engine, "_holds", lambda self, session, delta: True)


@defect
def an_input_is_not_handed_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Port, "give_input", lambda self, *args: None)


@partial(defect, kinds=["unreachable", "freeze control plane"])
def a_silent_control_plane_is_waited_for_for_ever(patch: pytest.MonkeyPatch) -> None:
    async def wait(self: Link, connection: Any) -> None:
        return

    patch.setattr(Link, "_expect_welcome", wait)


@defect
def the_queue_forgets_to_give_places_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Port, "_release", lambda self, step_id: self.held.pop(step_id, None))


@defect
def a_full_consumer_loses_what_it_is_given(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimpleMessageQueue, "_share_waiting", lambda self, topic: topic.waiting.popitem(last=False))


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, kinds = DEFECTS[name]
    patch(monkeypatch)
    assert first_found(range(SEEDS_MAX), kinds=kinds) is not None
