"""The simulation can fail: each of these defects, put into the product on purpose, is found within some seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import msgspec
import pytest
from tests.testing.simulation.seeds import first_found

from llama_deploy.control_plane import answers
from llama_deploy.control_plane.admission import Admission
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.forks import Past
from llama_deploy.control_plane.gateway import Port
from llama_deploy.control_plane.rates import RateWindow
from llama_deploy.control_plane.recording import Recording
from llama_deploy.control_plane.repeats import Repeats
from llama_deploy.control_plane.schedules import Schedules
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.submissions import Submissions
from llama_deploy.control_plane.sweeper import Sweeper
from llama_deploy.control_plane.tasks import StreamState, TaskEntry
from llama_deploy.control_plane.webhooks import Webhooks
from llama_deploy.errors import WebhookFailedError
from llama_deploy.message_queues.simple import InProcessQueue
from llama_deploy.messages.webhooks import WebhookCall
from llama_deploy.services import Runner
from llama_deploy.services.line import Line
from llama_deploy.services.webhook import WebhookService
from llama_deploy.state_stores.base import DeliveryMove, DeliveryRow
from llama_deploy.testing.simulation.disk import Platter

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
def a_receiver_that_is_away_counts_as_told(patch: pytest.MonkeyPatch) -> None:
    post = WebhookService._post

    async def careless(self: WebhookService, call: WebhookCall) -> int:
        try:
            return await post(self, call)
        except WebhookFailedError as error:
            if error.retryable:
                return 204
            raise

    patch.setattr(WebhookService, "_post", careless)


@defect
def a_receiver_cannot_know_that_it_hears_something_again(patch: pytest.MonkeyPatch) -> None:
    call, times = Webhooks.call, count()

    async def anew(self: Webhooks, step_id: str) -> WebhookCall:
        return msgspec.structs.replace(await call(self, step_id), id=f"msg_{next(times)}")

    patch.setattr(Webhooks, "call", anew)


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

    def forgetful(self: Runner, welcome: Any, upstream: Any) -> None:
        answered = {step_id: step for step_id, step in self.steps.items() if step.answer is not None}
        for step_id in answered:
            del self.steps[step_id]
        welcomed(self, welcome, upstream)
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
    async def wait(self: Line, connection: Any) -> None:
        return

    patch.setattr(Line, "_expect_welcome", wait)


@defect
def the_queue_forgets_to_give_places_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Port, "_release", lambda self, step_id: self.held.pop(step_id, None))


@defect
def a_full_consumer_loses_what_it_is_given(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InProcessQueue, "_share_waiting", lambda self, topic: topic.waiting.popitem(last=False))


@defect
def a_timer_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sweeper, "_fire_timer", lambda self, entry, step: setattr(step, "published", True))


@partial(defect, kinds=[])
def deadlines_of_tasks_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    def extend(self: Sweeper, entry: Any, row: DeliveryRow, now: float, moves: list[DeliveryMove]) -> int:
        if entry is not None and not entry.final:
            moves.append(DeliveryMove(row.step_id, 1, 1, now + 3.0))
        return 0

    patch.setattr(Sweeper, "_at_deadline", extend)


@partial(defect, kinds=[])
def limits_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "passes", lambda self, entry, step: True)


@defect
def a_schedule_leaves_times_out(patch: pytest.MonkeyPatch) -> None:
    come = Schedules._come

    async def now_and_then(self: Schedules, name: str, standing: Any, due_at: float) -> None:
        if int(due_at) % 3:
            await come(self, name, standing, due_at)

    patch.setattr(Schedules, "_come", now_and_then)


@defect
def a_retry_takes_calls_for_what_was_remembered(patch: pytest.MonkeyPatch) -> None:
    def remembered(self: Past, step_id: str) -> dict[str, bytes]:
        said = [record for record in self.records if record.step_id == step_id and record.key is not None]
        return {str(record.key): bytes(record.value) for record in said}

    patch.setattr(Past, "remembered", remembered)


@defect
def a_resumed_step_begins_again_under_its_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TaskEntry, "was_begun", lambda self, step: False)


@partial(defect, kinds=[])
def rates_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RateWindow, "next_at", lambda self, now: now)


@defect
def what_is_given_up_has_no_letter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(answers, "dead_letters", lambda *_: ())


@partial(defect, kinds=["crash client", "crash control plane", "cut wires"])
def a_letter_is_sent_again_each_time(patch: pytest.MonkeyPatch) -> None:
    begin = Repeats.begin

    async def anew(self: Repeats, *args: Any, key: str | None = None, **options: Any) -> Any:
        return await begin(self, *args, key=None, **options)

    patch.setattr(Repeats, "begin", anew)


@defect
def a_fork_counts_its_steps_from_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Past, "sent", lambda self, seq: 0)


@defect
def a_content_is_said_to_be_kept_and_is_not(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any, **__: Any) -> None:
        return

    patch.setattr(Platter, "finish_blob", nothing)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, kinds = DEFECTS[name]
    patch(monkeypatch)
    assert first_found(range(SEEDS_MAX), kinds=kinds) is not None
