"""Recording: a decision becomes one transition, and what follows from it happens after the commit.

Everything that changes a task passes `commit` here: the narrow row under its version, one history entry, tickets
taken, deliveries sent. Nothing is published and nobody is woken before the store has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from llama_deploy.control_plane.deadlines import DEADLINE_INDEX, deadline_id, look_again_at
from llama_deploy.control_plane.decisions import Decision, Outcome, Sending, encode_result, outcome_from_state
from llama_deploy.control_plane.records import Record, SentMessage
from llama_deploy.control_plane.refusals import beyond, error_code, failure, too_large
from llama_deploy.control_plane.session_state import Delta
from llama_deploy.control_plane.state_changes import written
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry, step_of
from llama_deploy.errors import LimitExceededError, LlamaDeployError, NoProgressError, ShardLostError
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import DeliveryRow, HistoryRow, SharedRead, SharedWrite, Transition
from llama_deploy.types.reserved import PERSON_SERVICE, TIMER_SERVICE

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

log = get_logger("llama_deploy.engine")

ENVELOPE_BYTES_MAX = 65_536
"""What the system itself puts around a payload (ids, names, counts) does not count towards the payload's limit."""
REFUSALS_MAX = 5
"""What a step says is not tried to be recorded any more after so many refused commits in a row."""
REFUSED_PAUSE_S = 0.05
"""Pause after the second of them; it doubles."""


def sent_message(step: OpenStep, delay_s: float) -> SentMessage:
    """What a history entry says of a message: its step as it is sent now."""
    message = SentMessage(
        step_id=step.step_id,
        service=step.service,
        action=step.action,
        data=msgspec.Raw(step.body),
        tag=step.tag,
        delay_s=delay_s,
    )
    if step.options is not None:
        message.options = msgspec.Raw(step.options.model_dump_json(exclude_defaults=True).encode())
    return message


class Recording:
    """How one engine records."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.refusals: Counter[str] = Counter()
        """Steps about which a commit was refused, and how often in a row: what was said will be said again."""

    def record_decision(
        self,
        entry: TaskEntry,
        transition: Transition,
        kind: str,
        record: Record,
        decision: Decision,
        *,
        now: float,
        state: str | None = None,
        remembers: tuple[OpenStep, bytes | None] | None = None,
    ) -> None:
        """Put a decision into a transition and hand it to the store.

        A submission whose decision exceeds a limit raises `LimitExceededError` before anything is changed; a task
        that runs already fails with it.
        """
        outcome = decision.outcome
        sendings = decision.sendings
        excess = self._excess(entry, decision)
        if outcome is not None:
            sendings = [decision.notify] if decision.notify and self._is_told(entry, decision.notify) else []
        if excess is not None:
            if entry.row.version == 0:
                raise excess
            outcome, sendings = Outcome("failed", encode_result(failure(entry.row.task_id, excess))), []
        else:
            self.record_delta(entry, transition, record, decision.delta)
            if remembers is not None and self._engine.memory.modes:
                self._engine.memory.take(entry, remembers[0], transition, record, remembers[1])
            if decision.taken_back:
                self._take_back_open(entry, transition, record, decision.taken_back)
            if decision.emitted:
                emitted = self._engine.streams.take_emitted(entry, decision.emitted)
                transition.chunks = (*transition.chunks, *emitted)
        if outcome is None and not sendings and not entry.open:
            outcome = outcome_from_state(entry.definition, entry.private) or self._no_progress(entry)
        if outcome is not None:
            self.end(entry, transition, kind, record, outcome, now=now, sendings=sendings)
            return
        if self._send(entry, transition, record, sendings, now):
            state = "input_required"
        self.commit(entry, transition, kind, record, now=now, state=state or entry.working_state(), steps=len(sendings))

    def _is_told(self, entry: TaskEntry, notify: Sending) -> bool:
        """Whether anybody hears of the end: nobody who is not there, and of a called task only who called it."""
        options = entry.definition.options
        if options is not None and options.origin is not None and options.origin.kind == "child":
            return False
        return self._engine.registry.serves(notify.service)

    def _take_back_open(self, entry: TaskEntry, transition: Transition, record: Record, tags: list[str]) -> None:
        """Delete the deliveries of open steps that the policy does not want any more; after the commit they stop."""
        wanted = set(tags)
        beginnings = tuple(tag for tag in tags if not tag or tag.endswith("/"))
        steps = [
            step
            for step in entry.open.values()
            if not step.notification and ((step.tag or "") in wanted or (step.tag or "").startswith(beginnings))
        ]
        for step in steps:
            del entry.open[step.step_id]
        record.taken_back = [step.step_id for step in steps]
        transition.answered = [*transition.answered, *record.taken_back]
        recorded = transition.settled

        def settled(error: LlamaDeployError | None) -> None:
            if error is None:
                for step in steps:
                    self.take_back(step, "the orchestrator does not want it any more")
            recorded(error)

        transition.settled = settled

    def _excess(self, entry: TaskEntry, decision: Decision) -> LimitExceededError | None:
        """The refusal of a decision that asks for more than is allowed."""
        settings = self._engine.settings
        limit = settings.payload_bytes_max + ENVELOPE_BYTES_MAX
        for sending in decision.sendings:
            excess = self.excess_of(sending)
            if excess is not None:
                return excess
        delta = decision.delta
        for changes in (delta.own, delta.keys, delta.shared):
            for key, value in changes.items() if changes else ():
                if value is not None and len(value) > limit:
                    return too_large(f"value of {key!r} in the state", len(value), settings.payload_bytes_max)
        for event in decision.emitted:
            if len(event) > limit:
                return too_large("event", len(event), settings.payload_bytes_max)
        if decision.outcome is not None and len(decision.outcome.result) > limit:
            return too_large("outcome", len(decision.outcome.result), settings.payload_bytes_max)
        if entry.row.steps + len(decision.sendings) > settings.steps_per_task_max:
            limit = settings.steps_per_task_max
            return beyond("steps_per_task_max", limit, f"the orchestrator asks for more than {limit} steps")
        return self.history_refusal(entry) if decision.outcome is None else None

    def history_refusal(self, entry: TaskEntry) -> LimitExceededError | None:
        """The refusal of one more entry in a history that is as long as it may be; its end always finds room."""
        limit = self._engine.settings.history_entries_per_task_max
        if entry.row.version >= limit:
            return beyond("history_entries_per_task_max", limit, f"the history of the task has {limit} entries")
        return None

    def excess_of(self, sending: Sending) -> LimitExceededError | None:
        """The refusal of a message that is larger than is allowed."""
        limit = self._engine.settings.payload_bytes_max
        return (
            too_large("message", len(sending.data), limit) if len(sending.data) > limit + ENVELOPE_BYTES_MAX else None
        )

    def _no_progress(self, entry: TaskEntry) -> Outcome:
        error = NoProgressError(
            "the orchestrator sent no message, no step is open and there is no result",
            fix=f"return a message, or put the result under result_{entry.row.task_id}",
        )
        return Outcome("failed", encode_result(failure(entry.row.task_id, error)))

    def record_delta(self, entry: TaskEntry, transition: Transition, record: Record, delta: Delta) -> None:
        """Take a decision's changes of state over into memory, the history and the session's rows."""
        own_removed = entry.private.own is not None and not delta.own_present
        if delta.own or delta.own_present or own_removed or delta.keys or delta.shared:
            record.change = written(delta, entry.private, bytes(record.result))
        entry.private.apply(delta)
        session = entry.session
        if session is None or (not delta.shared and not delta.reads):
            return
        transition.shared_reads = [
            SharedRead(session.session_id, key, version)
            for key, version in delta.reads.items()
            if key not in delta.shared and (cell := session.cells.get(key)) and cell.version > cell.committed
        ]
        writes = []
        for key, value in delta.shared.items():
            version = session.version(key)
            writes.append(SharedWrite(session.session_id, key, version, value))
            session.put(key, value, version + 1, committed=False)
        transition.shared = writes

    def _send(self, entry: TaskEntry, transition: Transition, record: Record, sendings: list[Any], now: float) -> bool:
        """Turn messages into open steps, history and delivery rows; returns whether a person is asked by one."""
        asks = False
        if not sendings:
            return asks
        task_id = entry.row.task_id
        seq = entry.row.version + 1
        number = entry.row.steps
        rows: list[DeliveryRow] = []
        for index, sending in enumerate(sendings, start=len(record.messages)):
            number += 1
            step = OpenStep(
                step_id=f"{task_id}:{number}",
                service=sending.service,
                action=sending.action,
                tag=sending.tag,
                body=sending.data,
                seq=seq,
                index=index,
            )
            step.options = sending.options
            begins_at = entry.begins_at if entry.begins_at > now and not step.notification else now
            if sending.delay_s > 0 or begins_at > now or step.service == TIMER_SERVICE:
                step.due_at = begins_at + sending.delay_s
            step.due_since = step.due_at or now
            entry.open[step.step_id] = step
            record.messages.append(sent_message(step, sending.delay_s))
            if step.service == PERSON_SERVICE:
                asks = True
                step.wait_for_person()
            visible_at = step.due_at or look_again_at(entry, step, now, self._engine.settings.overdue_s)
            rows.append(DeliveryRow(step.step_id, task_id, step.service, 1, visible_at, seq, index, step.parked))
        transition.sent = [*transition.sent, *rows]
        return asks

    def take_over(self, entry: TaskEntry, transition: Transition, record: Record, now: float) -> None:
        """Make open steps and delivery rows of messages that the record has from another task's history."""
        rows: list[DeliveryRow] = []
        for index, message in enumerate(record.messages):
            step = step_of(message, entry.row.version + 1, index)
            if message.delay_s or step.service == TIMER_SERVICE:
                step.due_at = now + message.delay_s
            step.due_since = step.due_at or now
            entry.open[step.step_id] = step
            visible_at = step.due_at or look_again_at(entry, step, now, self._engine.settings.overdue_s)
            row = DeliveryRow(
                step.step_id, entry.row.task_id, step.service, 1, visible_at, step.seq, index, step.parked
            )
            rows.append(row)
        transition.sent = [*transition.sent, *rows]

    def end(
        self,
        entry: TaskEntry,
        transition: Transition,
        kind: str,
        record: Record,
        outcome: Outcome,
        *,
        now: float,
        sendings: list[Any] | None = None,
    ) -> None:
        """End the task: its one outcome, and every step that is still open is taken back."""
        webhook = self._engine.webhooks.sending(entry.definition)
        if webhook is not None:
            sendings = [*(sendings or ()), webhook]
        if entry.deadline_at and entry.row.version:
            transition.answered = [*transition.answered, deadline_id(entry.row.task_id)]
        elif entry.deadline_at:  # it ends as it begins
            transition.sent = ()
        abandoned = list(entry.open.values())
        if abandoned:
            transition.answered = [*transition.answered, *(step.step_id for step in abandoned)]
            entry.open.clear()
        if entry.stream is not None and entry.stream.pending:
            transition.chunks = (*transition.chunks, *self._engine.streams.take_for_end(entry))
        self._send(entry, transition, record, sendings or [], now)
        if bytes(record.result) == outcome.result:
            record.outcome_is_result = True
        else:
            record.outcome = msgspec.Raw(outcome.result)
        recorded = transition.settled

        def settled(error: LlamaDeployError | None) -> None:
            if error is None:
                self._task_ended(entry, outcome.result, abandoned)
            recorded(error)

        transition.settled = settled
        self.commit(
            entry,
            transition,
            kind,
            record,
            now=now,
            state=outcome.state,
            steps=len(sendings or []),
            ended=True,
            error="" if outcome.state == "completed" else error_code(outcome.result),
        )

    def _task_ended(self, entry: TaskEntry, outcome: bytes, abandoned: list[OpenStep]) -> None:
        failpoint("recording.outcome_recorded")
        entry.outcome = outcome
        self._engine.statistics.ended += 1
        if not entry.moved:
            self._engine.cache.leave_session(entry)
        for step in abandoned:
            self.take_back(step, "the task has ended")
        if entry.children is not None:
            self._engine.parent_ended(entry)
        self._engine.cache.keep_ended(entry)
        callbacks, entry.ended_callbacks = entry.ended_callbacks, []
        for callback in callbacks:
            callback(entry)
        failpoint("recording.outcome_told")

    def take_back(self, step: OpenStep, reason: str) -> None:
        """Make sure that nobody works on a step any more."""
        port = self._engine.registry.instances.get(step.claimed_by) if step.claimed_by else None
        if port is not None:
            port.cancel(step.step_id, reason)
        elif step.published:
            self._engine.queue.withdraw([step.step_id])

    def commit(
        self,
        entry: TaskEntry,
        transition: Transition,
        kind: str,
        record: Record,
        *,
        now: float,
        state: str,
        steps: int = 0,
        ended: bool = False,
        error: str = "",
        paused: bool | None = None,
    ) -> None:
        """Hand one transition of a task to the store, with its history entry and its new row.

        After the commit: what is to be sent is published, whoever follows the task is woken.
        """
        record.state = state
        if entry.session is not None and entry.session.turns:
            self._engine.memory.let_go(entry.session, transition)
        transition.expected_version = entry.row.version
        service = entry.row.service or (record.messages[0].service if record.messages else "")
        row = entry.bump(now, state=state, steps=steps, service=service, ended=ended, error=error, paused=paused)
        transition.task = row
        data = self._engine.contents.record(entry, transition, record)
        transition.entry = HistoryRow(row.task_id, row.version, now, kind, data)
        recorded = transition.settled
        session = entry.session if transition.shared else None
        if session is not None:
            session.changing()
        seq = row.version
        shared = transition.shared
        to_publish = [
            step
            for sent in transition.sent
            if sent.index != DEADLINE_INDEX and not ((step := entry.open[sent.step_id]).due_at or step.parked)
        ]

        def settled(refusal: LlamaDeployError | None) -> None:
            if session is not None:
                session.changed()
            if refusal is not None:
                self._engine.leadership.refused(refusal)
                self._engine.contents.doubt(transition.blob_uses)
                if session is not None:
                    self._engine.cache.forget_session(session)
                if seq > 1:
                    self.refused(entry)
                recorded(refusal)
                return
            entry.settled_seq = seq
            entry.shown = row
            self._arm_sweeper(transition)
            for write in shared:
                self._shared_committed(write)
            recorded(None)
            self._engine.gave_back(transition)
            if to_publish:
                self._engine.publish(entry, to_publish)
            if entry.watchers:
                entry.notify()

        transition.settled = settled
        self._engine.store.record(transition)

    def hand_over(self, transition: Transition) -> None:
        """Hand a transition to the store that changes deliveries and nothing else."""
        recorded = transition.settled

        def settled(error: LlamaDeployError | None) -> None:
            if error is None:
                self._arm_sweeper(transition)
            recorded(error)
            if error is None:
                self._engine.gave_back(transition)

        transition.settled = settled
        self._engine.store.record(transition)

    def _arm_sweeper(self, transition: Transition) -> None:
        """Have the sweeper look when what is committed now falls due; before the commit it would not see it."""
        for delivery in transition.sent:
            self._engine.arm_sweeper(delivery.visible_at)
        for move in transition.moved:
            if not move.parked:
                self._engine.arm_sweeper(move.visible_at)

    def _shared_committed(self, write: SharedWrite) -> None:
        session = self._engine.cache.sessions.get(write.session_id)
        if session is not None:
            session.committed(write.key, write.expected_version + 1)

    def refused(self, entry: TaskEntry) -> None:
        """A guard failed: memory is not what the store says. The task is loaded again; what was refused starts over."""
        if entry.stale or entry.moved:
            return
        self._engine.statistics.conflicts += 1
        log.warning("commit refused, task is loaded again", task_id=entry.row.task_id)
        self._engine.cache.forget(entry)
        epoch = self._engine.leadership.epoch_of(entry.row.session_id)

        async def reload() -> None:
            entry.notify()
            try:
                fresh = await self._engine.cache.load(entry.row.task_id, patient=True)
            except ShardLostError:
                entry.moved = True
                self._engine.admission.replaced(entry, None)
                entry.tell_moved()
                return
            if fresh is None:  # it was removed meanwhile: whoever waits for it asks again, and is told
                entry.moved = True
                self._engine.admission.replaced(entry, None)
                entry.tell_moved()
                return
            lead_is_ours = epoch == self._engine.leadership.epoch_of(entry.row.session_id)  # all the time
            for step_id, step in fresh.open.items() if lead_is_ours else ():
                before = entry.open.get(step_id)
                same = before is not None and before.attempt == step.attempt
                if before is not None and same and step.claimed_by in (None, before.claimed_by):
                    step.claimed_by, step.claimed_at, step.topic = before.claimed_by, before.claimed_at, before.topic
                    # A timer that was about to be answered is answered by this one, when the sweeper comes again.
                    step.published = before.published and step.service != TIMER_SERVICE
                    step.overdue_s, step.sent_again_at = before.overdue_s, before.sent_again_at
                    step.awaited, step.resumed_at = before.awaited, before.resumed_at
            self._engine.admission.replaced(entry, fresh)
            self._engine.when_ended(fresh, entry.end_like)
            fresh.when_moved(entry.move_like_it)
            for callback in entry.ended_callbacks:
                self._engine.when_ended(fresh, callback)
            while entry.mailbox:  # each of them sees that the entry is stale, and starts over
                entry.mailbox.popleft()()
            # Else a commit is on its way that publishes, or the sweeper does, once instances had time to come.
            if lead_is_ours and fresh.settled_seq == fresh.row.version and not fresh.busy:
                now = self._engine.clock.now()
                # What was said is said again by whoever has the step; what was begun is the sweeper's next attempt.
                free = (s for s in fresh.open.values() if s.step_id not in self.refusals and not fresh.was_begun(s))
                waiting = [s for s in free if not s.parked and not s.published and s.due_at <= now]
                self._engine.publish(fresh, waiting)

        self._engine.spawn(reload())

    def or_again(
        self, step_id: str, again: Callable[[], None], done: Callable[[], None]
    ) -> Callable[[LlamaDeployError | None], None]:
        """What follows a commit about a step: `done`; or `again` where it was refused, after a pause from then on."""

        def settled(error: LlamaDeployError | None) -> None:
            if error is None:
                self.refusals.pop(step_id, None)
                done()
                return
            if isinstance(error, ShardLostError):  # whoever said it is told by whoever leads the task now
                self.refusals.pop(step_id, None)
                again()
                return
            self.refusals[step_id] += 1
            count = self.refusals[step_id]
            if count == 1:
                again()
            elif count <= REFUSALS_MAX:
                self._engine.spawn(self._later(REFUSED_PAUSE_S * 2**count, again))
            else:
                del self.refusals[step_id]
                log.error("what a step said cannot be recorded; it runs again when it is overdue", step_id=step_id)

        return settled

    async def _later(self, pause_s: float, again: Callable[[], None]) -> None:
        await self._engine.sleep(pause_s)
        again()
