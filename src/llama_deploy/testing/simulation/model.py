"""The plain model: what must be true of a run once all has come to rest, whatever happened on the way.

It reads what the store has recorded, what clients were told and what services have done, and compares them with each
other and with the outcome that each program has by arithmetic. It knows nothing of faults.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from typing import Any

import msgspec

from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.records import Record, decode_record
from llama_deploy.control_plane.schedule_standing import task_id_of
from llama_deploy.errors import TaskTimeoutError
from llama_deploy.messages.webhooks import message_id
from llama_deploy.state_stores import StateStore
from llama_deploy.state_stores.base import HistoryRow, StreamChunk, TaskFilter, TaskRow
from llama_deploy.testing.simulation.cluster import Cluster
from llama_deploy.testing.simulation.loop import START_S
from llama_deploy.testing.simulation.programs import RETRIES, WORKERS, Job, Plan, answer_of, expected, value_of
from llama_deploy.testing.simulation.receivers import GONE, TROUBLE_REQUESTS, manner_of
from llama_deploy.types import RateLimit, TaskDefinition, TaskResult
from llama_deploy.types.reserved import TIMER_SERVICE
from llama_deploy.types.webhooks import WEBHOOK_SERVICE

LATE_S_MAX = 1.0
"""How long after its deadline a task may end where nothing goes wrong."""
SMALL_S = 1e-3
NOT_RECORDED = "stopped with transitions that could not be recorded"
MADE_OF_ANOTHER = ("retry:", "redrive:", "replay:", "fork:")
FINAL = frozenset({"completed", "failed", "canceled", "rejected"})


class Findings(list[str]):
    """What is wrong."""

    def expect(self, holds: object, *words: object) -> None:
        """Note the words unless it holds."""
        if not holds:
            self.append(" ".join(map(str, words)))


def outcome_of(record: Record) -> TaskResult | None:
    """The outcome that a history entry records, if it does."""
    encoded = bytes(record.result if record.outcome_is_result else record.outcome)
    return TaskResult.model_validate_json(encoded) if encoded else None


async def check(cluster: Cluster, *, undisturbed: bool, disk_failed: bool) -> Findings:
    """Everything that is wrong with a run that has come to rest; `undisturbed` ones must not even try twice.

    `disk_failed`: a control plane that was asked to stop may have said that there is something it cannot record.
    """
    found = Findings(cluster.told.wrong)
    plane = cluster.plane
    assert plane is not None
    store = plane.store
    rows = {row.task_id: row for row in (await store.list_tasks(TaskFilter(), limit=1000)).rows}
    plans = _plans_by_id(cluster, found)
    sums: dict[str, int] = defaultdict(int)
    answers: dict[str, int] = defaultdict(int)
    children: dict[str, str] = {}
    given_up: set[str] = set()
    for task_id, row in rows.items():
        history = [(entry, decode_record(entry.data)) for entry in await plane.engine.contents.history(task_id)]
        plan = plans.get(task_id) or _plan_of(found, cluster, row, history, children)
        if plan is None:
            found.append(f"nobody has asked for {task_id}")
            continue
        _check_history(found, row, history)
        _check_outcome(found, cluster, plan, row, history, undisturbed=undisturbed)
        _check_steps(found, cluster, row, history)
        given_up |= _given_up(history)
        await _check_files(found, store, history)
        for _, record in history:
            if counted := _folded(record, cluster.kind):
                answers[row.session_id] += 1
                sums[row.session_id] += answer_of(counted)
        if undisturbed:
            _check_economy(found, cluster, row, history)
        await _check_stream(found, cluster, store, plan, row, history)
        await _check_webhook(found, cluster, plane, row, history, undisturbed=undisturbed)
    for step_id, values in cluster.ledger.remembered.items():
        found.expect(len(values) <= 1, f"{step_id}: attempts were given {values} for one value")
    await _check_schedule(found, cluster, plane, rows)
    if undisturbed:
        _check_limits(found, cluster)
    await _check_dead(found, cluster, store, rows, given_up)
    for task_id in plans:
        found.expect(task_id in rows, f"{task_id} was accepted, and is not there")
    if cluster.kind != "simple":
        for session_id in sorted({plan.session_id for plan in cluster.plans if plan.session_id}):
            await _check_session(found, store, session_id, answers[session_id], sums[session_id])
    found.expect(not cluster.heard.events, f"told to receivers, and nobody asked for it: {cluster.heard.events}")
    found.expect(not cluster.heard.forged, f"requests that are not genuine: {cluster.heard.forged}")
    await _check_rest(found, cluster, plane)
    found += [f"logged: {text}" for text in cluster.loop.errors if not (disk_failed and NOT_RECORDED in text)]
    return found


def _plan_of(
    found: Findings,
    cluster: Cluster,
    row: TaskRow,
    history: list[tuple[HistoryRow, Record]],
    children: dict[str, str],
) -> Plan | None:
    """The plan of a task of which no client knows that it was accepted."""
    if row.origin.startswith("child:"):
        return _called(found, history, children)
    if row.origin.startswith("schedule:"):
        return _recurring(history)
    # It was recorded, and its client was never told: under the key, or the id, of a plan.
    of_plan = (p for p in cluster.plans if row.task_id == p.task_id or row.task_id.startswith(f"{p.task_id}-"))
    return next(of_plan, None)


def _called(found: Findings, history: list[tuple[HistoryRow, Record]], children: dict[str, str]) -> Plan:
    """The plan of a task that a step has called; each step here calls once."""
    definition = TaskDefinition.model_validate_json(bytes(history[0][1].definition))
    task_id = definition.task_id
    origin = definition.options.origin if definition.options is not None else None
    step_id = (origin.step_id if origin is not None else None) or ""
    found.expect(children.setdefault(step_id, task_id) == task_id, f"{step_id} has called {task_id} and another one")
    stages = msgspec.convert(msgspec.json.decode(definition.input)["stages"], list[list[Job]])
    return Plan(task_id, stages[0][0].service, stages, cancel_at=0.0)


def _plans_by_id(cluster: Cluster, found: Findings) -> dict[str, Plan]:
    """The accepted tasks; each plan has become one of them."""
    plans: dict[str, Plan] = {}
    for plan in cluster.plans:
        ids = cluster.told.accepted.get(plan.task_id, set())
        found.expect(len(ids) == 1, f"{plan.task_id} was accepted as {sorted(ids)}")
        for task_id in ids:
            plans[task_id] = plan
    for task_id, earlier in cluster.told.made.items():
        plan = plans[earlier]
        mended = plan.breakable in cluster.ledger.mended
        plans[task_id] = replace(plan, delay_s=None, reads_stream=False, mended=mended)
    return plans


def _recurring(history: list[tuple[HistoryRow, Record]]) -> Plan:
    """The plan of a task that a schedule has submitted."""
    definition = TaskDefinition.model_validate_json(bytes(history[0][1].definition))
    stages = msgspec.convert(msgspec.json.decode(definition.input)["stages"], list[list[Job]])
    return Plan(definition.task_id, stages[0][0].service, stages)


async def _check_schedule(found: Findings, cluster: Cluster, plane: ControlPlane, rows: dict[str, TaskRow]) -> None:
    """Each time of the schedule has its one task, from when the schedule is recorded on."""
    recurring = cluster.recurring
    made = {task_id for task_id, row in rows.items() if row.origin.startswith("schedule:")}
    if recurring is None:
        found.expect(not made, f"nobody has made a schedule for {sorted(made)}")
        return
    times = {task_id_of(recurring.name, START_S + when): START_S + when for when in recurring.times}
    found.expect(made <= times.keys(), f"{sorted(made)} are not all times of the schedule: {sorted(times)}")
    begun = (await plane.schedules.get(recurring.name)).created_at
    missing = [task_id for task_id, when in times.items() if when > begun and task_id not in made]
    found.expect(not missing, f"times of the schedule without a task: {missing}")


def _given_up(history: list[tuple[HistoryRow, Record]]) -> set[str]:
    """The steps of a task that failed for good."""
    failed = (e.kind == "answered" and b'"status":"failed"' in bytes(record.result) for e, record in history)
    return {str(record.step_id) for (_, record), one in zip(history, failed, strict=True) if one}


async def _check_files(found: Findings, store: StateStore, history: list[tuple[HistoryRow, Record]]) -> None:
    """What a step has stored is there, whole, as long as a task speaks of it."""
    messages = {message.step_id: message for _, record in history for message in record.messages}
    for entry, record in history:
        message = messages.get(record.step_id or "")
        if entry.kind != "answered" or message is None or b"$artifact" not in bytes(record.result):
            continue
        made = TaskResult.model_validate_json(bytes(record.result)).output["made"]
        size = await store.blob_bytes(made["$artifact"])
        found.expect(size == made["size_bytes"], f"{record.step_id}: its file has {size} bytes, not {made}")
        content = await store.load_blob(made["$artifact"])
        kept = hashlib.sha256(content).hexdigest()
        found.expect(kept == made["$artifact"], f"{record.step_id}: its file is another one: {content[:40]!r}")


async def _check_webhook(
    found: Findings,
    cluster: Cluster,
    plane: ControlPlane,
    row: TaskRow,
    history: list[tuple[HistoryRow, Record]],
    *,
    undisturbed: bool,
) -> None:
    """The end of a task was told to its receiver, as it is recorded, or was given up where that wants nothing."""
    definition = TaskDefinition.model_validate_json(bytes(history[0][1].definition))
    webhook = definition.options.webhook if definition.options is not None else None
    sent = [m.step_id for m in history[-1][1].messages if m.service == WEBHOOK_SERVICE]
    found.expect(len(sent) == (webhook is not None), f"{row.task_id}: told of its end by {sent}, asked for {webhook}")
    if webhook is None or not sent:
        return
    message, gone = message_id(sent[0]), manner_of(webhook) == GONE
    events = cluster.heard.events.pop(message, [])
    wrong = [
        event for event in events if (event["data"]["task_id"], event["type"]) != (row.task_id, f"task.{row.state}")
    ]
    found.expect(not wrong, f"{row.task_id} is {row.state}, its receiver was told {wrong}")
    found.expect(bool(events) != gone, f"{row.task_id}: its receiver has heard {len(events)} times, gone is {gone}")
    dead = await plane.store.load_dead(sent[0])
    found.expect((dead is not None) == gone, f"{row.task_id}: the news of its end was given up: {dead}")
    if undisturbed:
        most = 1 if gone or manner_of(webhook) == "ready" else TROUBLE_REQUESTS + 1
        asked = cluster.heard.asked[message]
        found.expect(asked <= most, f"{row.task_id}: its receiver was asked {asked} times, {most} are enough")


def _check_limits(found: Findings, cluster: Cluster) -> None:
    """Where nothing goes wrong, no service has run more at once, or begun more in a time, than it may."""
    most = cluster.ledger.most
    beyond = [f"{name}: {most[name]}" for name, limit in cluster.limits.items() if limit and most[name] > limit]
    found.expect(not beyond, f"more runs at once than there may be: {beyond}")
    for name, rate in cluster.rates.items():
        _check_rate(found, name, rate, sorted(cluster.ledger.handed_out[name].values()))


def _check_rate(found: Findings, name: str, rate: RateLimit, begun: list[float]) -> None:
    """No window of a rate has more beginnings than it may have."""
    for first, one_too_many in zip(begun, begun[rate.count :], strict=False):
        within_s = one_too_many - first
        holds = within_s > rate.seconds - SMALL_S
        found.expect(holds, f"{name}: {rate.count + 1} attempts were handed out within {within_s:g} s, {rate} may be")


async def _check_dead(
    found: Findings, cluster: Cluster, store: StateStore, rows: dict[str, TaskRow], given_up: set[str]
) -> None:
    """What was given up has its letter, which says where it was sent again."""
    letters = {row.step_id: row for row in (await store.list_dead(limit=1000)).rows}
    for step_id, letter in letters.items():
        made = rows.get(letter.redriven)
        of_it = made is not None and made.origin in {f"{kind}:{letter.task_id}" for kind in ("retry", "redrive")}
        found.expect(of_it or not letter.redriven, f"{step_id} was sent again in {letter.redriven}: {made}")
        told = cluster.told.redriven.get(step_id, letter.redriven)
        found.expect(told == letter.redriven, f"{step_id} was sent again in {letter.redriven}, a client heard {told}")
    without = given_up - letters.keys()
    found.expect(not without, f"given up without a dead letter: {sorted(without)}")


def _check_history(found: Findings, row: TaskRow, history: list[tuple[HistoryRow, Record]]) -> None:
    task_id = row.task_id
    numbers = [entry.seq for entry, _ in history]
    found.expect(numbers == list(range(1, row.version + 1)), f"{task_id}: history {numbers} at version {row.version}")
    ends = [entry.seq for entry, record in history if outcome_of(record) is not None]
    found.expect(ends == [row.version], f"{task_id}: outcomes in entries {ends} of {row.version}")
    found.expect(row.state in FINAL, f"{task_id} is {row.state}")
    found.expect(row.ended_at is not None, f"{task_id} has no end")
    found.expect(
        history[-1][1].state == row.state, f"{task_id} is {row.state}, its history says {history[-1][1].state}"
    )
    answered = [record.step_id for entry, record in history if entry.kind == "answered"]
    found.expect(len(answered) == len(set(answered)), f"{task_id}: answered more than once: {answered}")
    # A retry with other data names its step once more.
    sent = list(dict.fromkeys(message.step_id for _, record in history for message in record.messages))
    if row.origin.startswith(MADE_OF_ANOTHER):  # it goes on with the numbers of what was open, and of what comes after
        numbers = [int(step_id.removeprefix(f"{task_id}:")) for step_id in sent]
        found.expect(numbers == sorted(set(numbers)) and numbers[-1] <= row.steps, f"{task_id}: steps {sent}")
        return
    wanted = [f"{task_id}:{number}" for number in range(1, len(sent) + 1)]
    found.expect(sent == wanted, f"{task_id}: steps {sent}")
    found.expect(row.steps == len(sent), f"{task_id}: {row.steps} steps counted, {len(sent)} sent")


def _check_outcome(
    found: Findings,
    cluster: Cluster,
    plan: Plan,
    row: TaskRow,
    history: list[tuple[HistoryRow, Record]],
    *,
    undisturbed: bool,
) -> None:
    task_id = row.task_id
    outcome = outcome_of(history[-1][1])
    if outcome is None:
        return
    for told in cluster.told.outcomes.get(task_id, ()):
        found.expect(told == outcome, f"{task_id}: a client was told {told!r}, recorded is {outcome!r}")
    found.expect(outcome.status == row.state, f"{task_id} is {row.state}, its outcome {outcome.status}")
    if task_id in cluster.told.canceled:
        found.expect(row.state == "canceled", f"{task_id}: a client was told that it is canceled, it is {row.state}")
    if row.state == "canceled":
        found.expect(plan.cancel_at is not None, f"nobody has canceled {task_id}")
        return
    if plan.total_timeout_s is not None:
        begun, ended = history[0][0].at + (plan.delay_s or 0.0), history[-1][0].at
        if outcome.error is not None and outcome.error.code == TaskTimeoutError.code:
            found.expect(ended >= begun + plan.total_timeout_s, f"{task_id}: its deadline was over before its time")
            return
        late = undisturbed and ended > begun + plan.total_timeout_s + LATE_S_MAX
        found.expect(not late, f"{task_id} has ended {ended - begun:g} s after its beginning")
    if any(_timed_out(record) for entry, record in history if entry.kind == "answered"):
        return  # it stood still for too long once more than it was tried: a fault is no part of the arithmetic
    right = expected(plan, cluster.kind)
    if right is None:
        found.expect(row.state == "failed", f"{task_id} is {row.state}, and must fail")
        return
    value = outcome.output.get("value") if isinstance(outcome.output, dict) else outcome.output
    found.expect(
        row.state == "completed" and value == right, f"{task_id}: {row.state} with {outcome.output}, must be {right}"
    )


def _timed_out(record: Record) -> bool:
    """Whether a step was given up because of its run deadline, or of that of what it called."""
    return b"ran longer than" in bytes(record.result) and b'"status":"failed"' in bytes(record.result)


def _check_steps(found: Findings, cluster: Cluster, row: TaskRow, history: list[tuple[HistoryRow, Record]]) -> None:
    """Steps ran before they were answered; answers are what the job computes; failures were retried as they should."""
    task_id = row.task_id
    messages = {message.step_id: message for _, record in history for message in record.messages}
    retried: dict[str, int] = defaultdict(int)
    inputs = 0
    for entry, record in history:
        step_id = record.step_id or ""
        if entry.kind == "retrying":
            retried[step_id] += 1
        if entry.kind == "input":
            inputs += 1
        if entry.kind != "answered" or step_id not in messages:
            continue
        message = messages[step_id]
        result = TaskResult.model_validate_json(bytes(record.result))
        if message.service in {"boss", "clerk"}:
            inputs += message.service == "boss"
            found.expect(result.output == value_of(_job(message.data), 0), f"{step_id}: {result.output!r}")
            continue
        if message.service == TIMER_SERVICE:
            due_at = result.data["due_at"]
            sent_at = next(e.at for e, r in history if any(m.step_id == step_id for m in r.messages))
            asked_s = max(sent_at + message.delay_s, 0.0)
            on_time = due_at >= asked_s - SMALL_S  # later where the task itself begins later
            found.expect(on_time, f"{step_id}: a timer until {asked_s} was due at {due_at}")
            continue
        runs = cluster.ledger.runs[step_id]
        if (earlier := cluster.told.made.get(task_id)) is not None:  # it may have kept the answer
            runs += cluster.ledger.runs[step_id.replace(task_id, earlier)]
        found.expect(runs > 0, f"{step_id} was answered and never ran")
        if result.status == "failed":
            found.expect(retried[step_id] <= RETRIES, f"{step_id} was retried {retried[step_id]} times")
            continue
        found.expect(1 <= result.output["run"] <= runs, f"{step_id}: run {result.output['run']} of {runs} has answered")
    found.expect(max(retried.values(), default=0) <= RETRIES, f"{task_id}: retried {dict(retried)}")
    told, tried = cluster.told.inputs[task_id], cluster.told.inputs_tried[task_id]
    if task_id in cluster.told.made:
        return  # what a person had answered in the task before is kept
    found.expect(told <= inputs <= tried, f"{task_id}: {told} inputs acknowledged, {inputs} recorded, {tried} sent")
    if (
        row.state in {"completed", "failed"}
        and not row.origin
        and cluster.ledger.told[task_id] == 0
        and cluster.kind == "simple"
        and history[-1][0].kind != "timed_out"  # that is no decision of the orchestrator
        and not cluster.drained  # who has left in order is not expected back, and nobody serving it is no error
    ):
        found.append(f"{task_id}: its end was told to nobody")


def _check_economy(found: Findings, cluster: Cluster, row: TaskRow, history: list[tuple[HistoryRow, Record]]) -> None:
    """Where nothing goes wrong no attempt is lost, and no step runs oftener than its job makes it."""
    lost = [record.step_id for entry, record in history if entry.kind == "lost"]
    found.expect(not lost, f"{row.task_id}: lost though nothing went wrong: {lost}")
    for message in (message for _, record in history for message in record.messages):
        if message.service in WORKERS and cluster.kind != "simple":
            job, runs = _job(message.data), cluster.ledger.runs[message.step_id]
            most = 1 if job.final else min(job.fails + job.hangs + (RETRIES if job.broken else 0), RETRIES) + 1
            found.expect(runs <= most, f"{message.step_id}: {runs} runs, {most} are enough")


def _job(data: Any) -> Job:
    """What a step was sent to do: by the program's orchestrator, or as a task that another step has called."""
    sent = msgspec.json.decode(bytes(data))
    job = sent["job"] if "job" in sent else msgspec.json.decode(sent["task"]["input"])["stages"][0][0]
    return msgspec.convert(job, Job)


def _folded(record: Record, kind: str) -> TaskResult | None:
    """The answer that an entry folds into the shared counts."""
    if kind == "simple" or not bytes(record.result) or not record.step_id:
        return None
    result = TaskResult.model_validate_json(bytes(record.result))
    return result if result.status == "completed" else None


async def _check_stream(  # noqa: PLR0917 - one call
    found: Findings,
    cluster: Cluster,
    store: StateStore,
    plan: Plan,
    row: TaskRow,
    history: list[tuple[HistoryRow, Record]],
) -> None:
    task_id = row.task_id
    chunks = await store.load_chunks(task_id, limit=10_000)
    events: list[Any] = []
    attempts: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for chunk in chunks:
        found.expect(chunk.first == len(events), f"{task_id}: stream goes on with {chunk.first} after {len(events)}")
        decoded = msgspec.json.decode(chunk.data)
        found.expect(len(decoded) == chunk.count, f"{task_id}: a chunk of {chunk.count} holds {len(decoded)}")
        events += decoded
        _check_chunk(found, chunk, decoded, attempts[chunk.step_id])
    for _, record in history:
        if record.step_id and bytes(record.result):
            result = TaskResult.model_validate_json(bytes(record.result))
            if result.status == "completed" and (streamed := attempts.get(record.step_id)):
                whole = streamed.get(result.attempt, [])
                found.expect(not whole or whole == list(range(len(whole))), f"{record.step_id}: events {whole}")
    if task_id in cluster.told.streams and plan.reads_stream:
        read = cluster.told.streams[task_id]
        found.expect(read == list(enumerate(events)), f"{task_id}: a client has read {read}, recorded is {events}")


def _check_chunk(found: Findings, chunk: StreamChunk, events: list[Any], attempts: dict[int, list[int]]) -> None:
    """Within an attempt events are dense, in order and its own; a further attempt opens with a marker."""
    step_id, attempt = chunk.step_id, chunk.attempt
    newest = max(attempts, default=0)
    found.expect(attempt >= newest, f"{step_id}: attempt {attempt} streams after attempt {newest}")
    if chunk.attempt_first < 0:
        found.expect(attempt > max(newest, 1), f"{step_id}: a marker for attempt {attempt} after {newest}")
        found.expect(events[0].get("llama_deploy") == "attempt", f"{step_id}: no marker: {events}")
        attempts[attempt] = []
        return
    found.expect(attempt == 1 or attempt in attempts, f"{step_id}: attempt {attempt} streams without a marker")
    seen = attempts.setdefault(attempt, [])
    found.expect(chunk.attempt_first == len(seen), f"{step_id}: event {chunk.attempt_first} after {len(seen)}")
    for event in events:
        found.expect(event.get("step") == step_id and event.get("attempt") == attempt, f"{step_id}: streamed {event}")
        seen.append(event.get("n"))
    found.expect(seen == list(range(len(seen))), f"{step_id}: attempt {attempt} has streamed {seen}")


async def _check_session(found: Findings, store: StateStore, session_id: str, answers: int, total: int) -> None:
    shared = {value.key: value for value in await store.load_shared(session_id)}
    values = {key: msgspec.json.decode(one.value) for key, one in shared.items() if one.value is not None}
    counted = (values.get("answers", 0), values.get("sum", 0))
    found.expect(counted == (answers, total), f"{session_id}: counts {counted}, answered were {(answers, total)}")


async def _check_rest(found: Findings, cluster: Cluster, plane: ControlPlane) -> None:
    """Nothing is left over: no delivery, nothing in memory that only an unfinished task needs."""
    engine, cache = plane.engine, plane.engine.cache
    found.expect(await plane.store.next_due() is None, "deliveries are left")
    left = {
        "unfinished tasks": cache.unfinished,
        "loading": len(cache._loading),
        "keys in flight": len(engine.submissions._keys_in_flight),
        "backlog": plane.store.backlog,
        "tasks beyond the limit": max(0, len(cache.ended_tasks) - max(1, engine.settings.ended_tasks_cached_max)),
        "mailboxes": sum(len(entry.mailbox) for entry in cache.tasks.values()),
        "busy": sum(entry.busy for entry in cache.tasks.values()),
        "watchers": sum(len(entry.watchers) for entry in cache.tasks.values()),
        "callbacks": sum(len(entry.ended_callbacks) for entry in cache.tasks.values()),
        "sessions in use": sum(session.unfinished for session in cache.sessions.values()),
        "changes pending": sum(session.pending for session in cache.sessions.values()),
        "steps held": sum(len(port.held) for port in engine.registry.instances.values()),
        "steps in runners": sum(len(runner.steps) for _, runner, _ in cluster.instances.values()),
        "waiting in queues": sum(plane.queue.statistics(name).waiting for name in engine.registry.services),
        "background work": len(engine._background),
    }
    for what, count in left.items():
        found.expect(not count, f"left over: {count} {what}")
