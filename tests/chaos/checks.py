"""What has to be true when a run is over: compared with the plan, with what clients were told, and with the sink.

Each check adds what differs to a list of problems; an empty list is a run without a fault of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.kind import Plan, Told, as_told
from tests.chaos.kinds import KINDS, session_of
from tests.chaos.kinds_of_data import secret_of
from tests.chaos.policy import COUNT
from tests.chaos.progress import StandstillError, while_it_moves
from tests.chaos.sink import Sink

from llama_deploy.client import Client
from llama_deploy.types import HistoryEntry, TaskView
from llama_deploy.types.reserved import TIMER_SERVICE
from llama_deploy.types.webhooks import WEBHOOK_SERVICE

AT_ONCE = 32
PROBLEMS_SHOWN = 30
STILL_S = 60.0
"""What a task has called is canceled after its end. When none of it ends for so long, that is a difference."""
WITHOUT_EFFECT = ("person", TIMER_SERVICE)
"""Services that are no code of ours."""


HISTORY_IN_CLEAR = b'"definition":{'
"""What stands in the first entry of every history."""


@dataclass
class Findings:
    """What the checks have found."""

    problems: list[str] = field(default_factory=list)
    entries: Counter[str] = field(default_factory=Counter)
    """History entries by kind."""
    steps: int = 0
    children: int = 0
    events: int = 0
    effects: int = 0
    effects_suppressed: int = 0
    news: int = 0
    """Events that webhooks were told."""
    news_repeated: int = 0

    def differs(self, what: str) -> None:
        self.problems.append(what)


async def check(client: Client, plans: Sequence[Plan], told: Sequence[Told], sink: Path, findings: Findings) -> None:
    """Everything that can be seen from outside."""
    by_number = {one.number: one for one in told}
    if len(by_number) != len(told):
        findings.differs("a client was told of the same task twice")
    for plan in plans:
        _check_told(plan, by_number.get(plan.number), findings)
    gone = {plan.task_id for plan in plans if not KINDS[plan.kind].stays}
    await _all_ended(client)
    listed = {task.task_id: task async for task in client.list_tasks()}
    over = {task.task_id for task in listed.values() if task.ended_at is not None}
    everyone = [one for first in told for one in (first, *first.others)]
    known = {one.task_id for one in everyone}
    for task in listed.values():
        if task.ended_at is None:
            story = [
                await _story(client, name) for name in (task.task_id, (task.origin or "").partition(":")[2]) if name
            ]
            findings.differs(
                f"{task.task_id}: has not ended: {task.state.value}, waits for {task.waiting_for}; {'; '.join(story)}"
            )
    for task_id in sorted(known - gone - set(listed)):
        findings.differs(f"{task_id}: acknowledged, and not there")
    for task_id in sorted(gone & set(listed)):
        findings.differs(f"{task_id}: erased, and there")
    called = await _children(client, [task for task in listed.values() if task.task_id not in known])
    for parent in sorted(set(called) - known):
        findings.differs(f"{parent}: has called {[one.task_id for one in called[parent]]}, and nobody was told of it")
    _check_children(plans, by_number, called, findings)
    children = [child for those in called.values() for child in those]
    findings.children = len(children)
    for task_id in sorted(set(listed) - known - {child.task_id for child in children}):
        findings.differs(f"{task_id}: is {listed[task_id].state.value}, and nobody was told of it")
    sent: dict[str, str] = {}
    answered: dict[str, Any] = {}
    limit = asyncio.Semaphore(AT_ONCE)

    async def look(one: Told) -> None:
        async with limit:
            if listed[one.task_id].state.value != one.state and one.number >= 0:
                findings.differs(f"{one.task_id}: told as {one.state}, listed as {listed[one.task_id].state.value}")
            entries = [entry async for entry in client.history(one.task_id, follow=True)]
            before = len(findings.problems)
            _check_history(one, entries, sent, answered, findings)
            await _check_stream(client, one, findings)
            if len(findings.problems) > before:
                findings.differs(f"{one.task_id}: its history is {[_in_short(entry) for entry in entries]}")

    await asyncio.gather(*(look(one) for one in (*everyone, *children) if one.task_id in over))
    _check_effects(sink, sent, answered, gone, findings)
    await _check_sessions(client, plans, by_number, findings)
    await _check_news(client, [plan for plan in plans if plan.kind == "notified"], by_number, sink, findings)
    findings.steps = len(sent)


def _in_short(entry: HistoryEntry) -> str:
    """An entry of a history, for whoever looks for what went wrong."""
    told = (entry.step_id, entry.attempt, entry.by, entry.reason)
    return f"{entry.at:.3f} {entry.kind} " + " ".join(str(one) for one in told if one is not None)


def _check_children(
    plans: Sequence[Plan], told: dict[int, Told], called: dict[str, list[Told]], findings: Findings
) -> None:
    for plan in plans:
        one = told.get(plan.number)
        states = sorted(child.state for child in called.get(one.task_id, ())) if one is not None else []
        if not KINDS[plan.kind].children_are_right(plan, states):
            findings.differs(f"{plan.task_id}: what it has called has {states}")


async def _story(client: Client, task_id: str) -> str:
    """What the history of a task says, in short."""
    entries = [entry async for entry in client.history(task_id)]
    told = [
        f"{entry.kind} {time.strftime('%X', time.gmtime(entry.at))}.{int(entry.at % 1 * 1000):03}" for entry in entries
    ]
    return f"{task_id}: {', '.join(told)}"


async def _all_ended(client: Client) -> None:
    """Wait until no task is under way, for as long as one after the other ends; who stays is seen from the list."""
    under_way: list[str] = []

    async def none() -> bool:
        under_way[:] = [task.task_id async for task in client.list_tasks(filter="state:unfinished")]
        return not under_way

    with contextlib.suppress(StandstillError):
        await while_it_moves(none, lambda: tuple(under_way), still_s=STILL_S)


async def _children(client: Client, tasks: Sequence[TaskView]) -> dict[str, list[Told]]:
    """What steps have called, by the task that called it, once it has ended."""
    found: dict[str, list[Told]] = defaultdict(list)
    for task in tasks:
        origin, _, parent = (task.origin or "").partition(":")
        if origin == "child":
            if task.ended_at is None:
                continue  # told already
            result = await client.wait(task.task_id)
            found[parent].append(as_told(Plan(-1, "child", task.task_id, 0), result))
    return found


def _check_told(plan: Plan, told: Told | None, findings: Findings) -> None:
    if told is None:
        findings.differs(f"{plan.task_id}: its client has never heard of its end")
        return
    expected = KINDS[plan.kind].expected(plan)
    if (told.state, told.output) != expected:
        findings.differs(f"{plan.task_id}: told {(told.state, told.output)}, expected {expected}")
    others = [(one.state, one.output) for one in told.others]
    if not KINDS[plan.kind].others_are_right(plan, others):
        findings.differs(f"{plan.task_id}: further tasks have {others}")


def _check_history(
    told: Told, entries: list[HistoryEntry], sent: dict[str, str], answered: dict[str, Any], findings: Findings
) -> None:
    """Dense, ended once, no step answered twice, nothing open that was sent; the outcome is what the client heard."""
    task_id = told.task_id
    if [entry.seq for entry in entries] != list(range(1, len(entries) + 1)):
        findings.differs(f"{task_id}: its history has a hole: {[entry.seq for entry in entries]}")
    ends = [entry for entry in entries if entry.outcome is not None]
    if [entry.seq for entry in ends] != [len(entries)]:
        findings.differs(f"{task_id}: its outcome stands in entries {[entry.seq for entry in ends]} of {len(entries)}")
        return
    outcome = ends[0].outcome or {}
    error = outcome.get("error") or {}
    value = outcome.get("value") if outcome.get("kind") == "json" else outcome.get("result")
    recorded = (outcome.get("status"), value if outcome.get("status") == "completed" else error.get("message"))
    if recorded != (told.state, told.output):
        findings.differs(f"{task_id}: told {(told.state, told.output)}, recorded {recorded}")
    own = {message["step_id"]: message["service"] for entry in entries for message in entry.messages}
    results = [entry for entry in entries if entry.kind == "answered"]
    twice = [step_id for step_id, count in Counter(entry.step_id for entry in results).items() if count > 1]
    if twice:
        findings.differs(f"{task_id}: answered twice: {twice}")
    open_steps = {step_id for step_id, name in own.items() if name != WEBHOOK_SERVICE}
    unanswered = open_steps - {entry.step_id for entry in results}
    if told.state == "completed" and unanswered:
        findings.differs(f"{task_id}: completed without {sorted(unanswered)}")
    findings.entries.update(entry.kind for entry in entries)
    sent.update(own)
    answered.update({entry.step_id: entry.result for entry in results if entry.step_id})


async def _check_stream(client: Client, told: Told, findings: Findings) -> None:
    """Read from the beginning it is what was followed live, without a gap or a number twice."""
    events = [(event.index, event.data) async for event in client.stream(told.task_id)]
    findings.events += len(events)
    if [number for number, _ in events] != list(range(len(events))):
        findings.differs(f"{told.task_id}: its stream has numbers {[number for number, _ in events]}")
    if told.events is None:
        if events:
            findings.differs(f"{told.task_id}: has a stream that nobody wrote")
        return
    if told.events != events:
        findings.differs(f"{told.task_id}: followed live {told.events}, read again {events}")
    attempts: dict[int, list[int]] = defaultdict(list)
    for _, data in events:
        if "number" in data:
            attempts[data["attempt"]].append(data["number"])
    for attempt, numbers in attempts.items():
        if numbers != list(range(len(numbers))):
            findings.differs(f"{told.task_id}: attempt {attempt} streamed {numbers}")
    if not attempts or len(attempts[max(attempts)]) != told.output:
        findings.differs(f"{told.task_id}: its last attempt's stream is not whole")


def _check_effects(
    sink: Path, sent: dict[str, str], answered: dict[str, Any], gone: set[str], findings: Findings
) -> None:
    """Every answered step has had its effect, once; nothing had one that was never sent."""
    effects = {effect.step_id: effect for effect in Sink(sink).effects()}
    for step_id, effect in effects.items():
        if step_id.rpartition(":")[0] in gone:
            continue  # what it was sent for is on no record any more
        if sent.get(step_id) != effect.service:
            findings.differs(f"{step_id}: an effect of {effect.service}, sent to {sent.get(step_id)}")
    for step_id, result in answered.items():
        if sent.get(step_id) in WITHOUT_EFFECT:
            continue
        if step_id not in effects:
            findings.differs(f"{step_id}: answered without an effect")
        elif result["status"] == "completed" and json.loads(effects[step_id].value) != result["value"]:
            findings.differs(f"{step_id}: answered {result['value']!r}, its effect was {effects[step_id].value}")
    findings.effects = len(effects)
    findings.effects_suppressed = sum(effect.times - 1 for effect in effects.values())


async def _check_sessions(client: Client, plans: Sequence[Plan], told: dict[int, Told], findings: Findings) -> None:
    """What tasks of a session have counted in its state is how many they are."""
    counted = Counter(session_of(plan) for plan in plans if plan.kind == "counted" and plan.number in told)
    for session_id, count in counted.items():
        state = await client.get_session_state(session_id)
        if state.get(COUNT) != count:
            findings.differs(f"{session_id}: counted {state.get(COUNT)} of {count} tasks")


async def _check_news(
    client: Client, plans: Sequence[Plan], told: dict[int, Told], sink: Path, findings: Findings
) -> None:
    """Each end that was to be told was told, under one id, with the outcome; nothing else was told.

    A webhook whose receiver was away several times is told again minutes later: what waits for its time is moving.
    """
    waiting = {plan.task_id for plan in plans if plan.number in told}
    due_at = 0.0

    async def all_told() -> bool:
        nonlocal due_at
        for task_id in tuple(waiting):
            webhook = (await client.get_task(task_id)).webhook
            due_at = max(due_at, webhook.due_at or 0.0) if webhook is not None else due_at
            if webhook is None or webhook.state in ("delivered", "failed"):
                waiting.discard(task_id)
                if webhook is None or webhook.state == "failed":
                    findings.differs(f"{task_id}: its webhook is not told: {webhook}")
        return not waiting

    try:
        await while_it_moves(all_told, lambda: (len(waiting), time.time() < due_at and time.time()), still_s=STILL_S)
    except StandstillError:
        findings.differs(f"webhooks are not told: {sorted(waiting)[:PROBLEMS_SHOWN]}")
    heard: dict[str, list[Any]] = defaultdict(list)
    for news in Sink(sink).news():
        event = json.loads(news.body)["data"]
        heard[event["task_id"]].append((event["state"], event["output"]))
        findings.news += 1
        findings.news_repeated += news.times - 1
        if news.differently:
            findings.differs(f"{news.event_id}: told differently {news.differently} times")
    for plan in plans:
        if plan.number in told and heard[plan.task_id] != [KINDS[plan.kind].expected(plan)]:
            findings.differs(f"{plan.task_id}: its webhook was told {heard[plan.task_id]}")
    for task_id in sorted(heard.keys() - {plan.task_id for plan in plans}):
        findings.differs(f"{task_id}: a webhook was told of it that nobody asked for")


def check_erased(path: Path, plans: Sequence[Plan], findings: Findings) -> None:
    """The file of a store, which nobody has open any more, has nothing of what was erased."""
    beside = [path, *path.parent.glob(f"{path.name}-*")]
    content = b"".join(one.read_bytes() for one in beside)
    for plan in plans:
        if not KINDS[plan.kind].stays and secret_of(plan).encode() in content:
            findings.differs(f"{plan.task_id}: was erased, and stands in the store's file")


def check_sealed(path: Path, findings: Findings) -> None:
    """The file of an encrypted store, which nobody has open any more, has nothing of any history in clear."""
    beside = [path, *path.parent.glob(f"{path.name}-*")]
    if any(HISTORY_IN_CLEAR in one.read_bytes() for one in beside):
        findings.differs("the store is encrypted, and histories stand in its file in clear")


def check_sqlite(path: Path, findings: Findings) -> None:
    """What has to be true of a SQLite store's file once nobody has it open."""
    connection = sqlite3.connect(path)
    try:
        if (found := connection.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
            findings.differs(f"the store's file is damaged: {found}")
        if left := connection.execute("SELECT step_id FROM deliveries").fetchall():
            findings.differs(f"steps are open although every task has ended: {left[:PROBLEMS_SHOWN]}")
    finally:
        connection.close()
