"""Random sequences of everything that can happen to steps of a limited service, beside a plain model.

After each of them the gate's counts are those that the steps themselves tell, no limit was exceeded by what was handed
out, and at the end, with every limit taken away, every task ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.control_plane.harness import FakeInstance, World, is_at_rest, submit
from tests.support import eventually

from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.gate import Gate, turn_of
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages.frames import CancelStep, Deliver
from llama_deploy.testing import ManualClock
from llama_deploy.types import RateLimit, RetryPolicy, ServiceLimits, TaskOptions

SETTINGS = EngineSettings(lease_s=1e9, reconnect_grace_s=0.5, recovery_grace_s=1.0, attempts_max=1_000)
RETRY = RetryPolicy(max_retries=1_000, initial_s=1.0, multiplier=1.0, jitter=0.0)
MAX = st.one_of(st.none(), st.integers(1, 3))
LIMITS = st.builds(
    ServiceLimits,
    running_max=MAX,
    running_max_per_session=MAX,
    running_max_per_key=MAX,
    rate=st.one_of(st.none(), st.builds(RateLimit, count=st.integers(1, 4), seconds=st.just(2.0))),
)
CHOICE = st.integers(0, 1_000)


class Watched(FakeInstance):
    """An instance that knows what it works on."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(instance_id=instance_id, concurrency=20, retry=RETRY)
        self.working: dict[str, Deliver] = {}
        self.asking: set[str] = set()

    def _receive(self, operations: list[Any]) -> None:
        before = len(self.received)
        super()._receive(operations)
        for operation in self.received[before:]:
            if isinstance(operation, Deliver):
                self.working[operation.step_id] = operation
                self.asking.discard(operation.step_id)
            elif isinstance(operation, CancelStep):
                self.working.pop(operation.step_id, None)
            elif hasattr(operation, "disowned"):
                for step_id in operation.disowned:
                    self.working.pop(step_id, None)


class Limited(RuleBasedStateMachine):
    """A service with limits, two instances, and everything that may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World(clock=ManualClock(), settings=SETTINGS)
        self.instances = [Watched("one"), Watched("two")]
        self.tasks: list[str] = []
        self.before: dict[tuple[str, str], int] = {}
        self.may_exceed = False

    def run(self, work: Any) -> Any:
        """Do something and wait until all that follows from it has happened."""

        async def done() -> Any:
            value = await work
            await self.quiet()
            return value

        return self.loop.run_until_complete(done())

    async def quiet(self) -> None:
        for _ in range(3):  # what is quiet may be followed by what it has caused
            await eventually(lambda: is_at_rest(self.world.plane))
            await asyncio.sleep(0)

    @initialize(limits=LIMITS)
    def start(self, limits: ServiceLimits) -> None:
        self.run_first(limits)

    def run_first(self, limits: ServiceLimits) -> None:
        async def begin() -> None:
            plane = await self.world.start()
            for instance in self.instances:
                await instance.connect(plane)
            await plane.engine.admission.set_limits("echo", limits)

        self.run(begin())

    def pick(self, choice: int) -> tuple[Watched, Deliver] | None:
        """One of the steps that somebody works on."""
        working = [(one, step) for one in self.instances if one.port for step in one.working.values()]
        return working[choice % len(working)] if working else None

    # --- what happens -----------------------------------------------------------------------------------------------

    @rule(session=st.sampled_from([None, "s", "t"]), key=st.sampled_from([None, "a", "b"]), priority=st.integers(0, 9))
    def submit(self, session: str | None, key: str | None, priority: int) -> None:
        name = f"task{len(self.tasks)}"
        self.tasks.append(name)
        options = TaskOptions(key=key, priority=priority)
        self.run(submit(self.world.plane, task_id=name, session_id=session, options=options, wait_for_service=True))

    @rule(choice=CHOICE, ends=st.sampled_from(["answer", "fail", "park", "park and run again"]))
    def end_attempt(self, choice: int, ends: str) -> None:
        if (found := self.pick(choice)) is None:
            return

        async def say() -> None:
            instance, step = found
            del instance.working[step.step_id]
            instance.asking.discard(step.step_id)
            if ends == "answer":
                instance.answer(step)
            elif ends == "fail":
                instance.fail(step)
            else:
                instance.park(step, resume="answer" if ends == "park" else "redeliver")

        self.run(say())

    @rule(choice=CHOICE)
    def ask(self, choice: int) -> None:
        if (found := self.pick(choice)) is not None and found[1].step_id not in found[0].asking:

            async def say() -> None:
                found[0].asking.add(found[1].step_id)
                found[0].ask(found[1])

            self.run(say())

    @rule(choice=CHOICE)
    def answer_a_question(self, choice: int) -> None:
        async def say() -> None:
            plane = self.world.plane
            entries = [plane.engine.cache.tasks.get(name) for name in self.tasks]
            asking = [s for e in entries if e is not None and not e.final for s in e.open.values() if s.asking]
            if asking:
                step = asking[choice % len(asking)]
                await plane.signals.send_input(step.step_id.rpartition(":")[0], "yes", step_id=step.step_id)

        self.run(say())

    @precondition(lambda self: self.tasks)
    @rule(choice=CHOICE, what=st.sampled_from(["cancel", "pause", "resume"]))
    def change_task(self, choice: int, what: str) -> None:
        async def say() -> None:
            plane, name = self.world.plane, self.tasks[choice % len(self.tasks)]
            change = {"cancel": plane.signals.cancel, "pause": plane.pauses.pause, "resume": plane.pauses.resume}
            try:
                await change[what](name)
            except LlamaDeployError:
                assert (await plane.engine.cache.get(name)).final

        self.run(say())

    @rule(limits=LIMITS)
    def change_limits(self, limits: ServiceLimits) -> None:
        self.may_exceed = True
        self.run(self.world.plane.engine.admission.set_limits("echo", limits))

    @rule(paused=st.booleans())
    def pause(self, *, paused: bool) -> None:
        admission = self.world.plane.engine.admission
        self.run(admission.pause("echo") if paused else admission.resume("echo"))

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.1, 40.0]))
    def time_passes(self, seconds: float) -> None:
        async def move() -> None:
            self.world.manual.advance(seconds)

        self.run(move())

    @rule(number=st.integers(0, 1), forgets=st.booleans())
    def reconnect(self, number: int, *, forgets: bool) -> None:
        """A connection breaks and comes back, with what the instance holds or as a new process."""
        self.run(self._reconnect(self.instances[number], forgets=forgets))

    async def _reconnect(self, instance: Watched, *, forgets: bool) -> None:
        self.may_exceed = not forgets
        if instance.port is not None:
            instance.drop()
        if forgets:
            instance.working.clear()
            instance.asking.clear()
        await instance.connect(self.world.plane, held=[(s.step_id, s.attempt) for s in instance.working.values()])

    @rule(number=st.integers(0, 1))
    def disconnect(self, number: int) -> None:
        async def drop() -> None:
            if self.instances[number].port is not None:
                self.instances[number].drop()

        self.run(drop())

    @rule(come_back=st.booleans())
    def crash(self, *, come_back: bool) -> None:
        async def again() -> None:
            await self.world.crash()
            await self.world.start()
            for instance in self.instances:
                instance.port = None
                if come_back:
                    await self._reconnect(instance, forgets=False)

        self.run(again())

    # --- what is always true ----------------------------------------------------------------------------------------

    def counted(self) -> dict[str, tuple[TaskEntry, OpenStep]]:
        """The steps that count by what they are themselves; of those that ask, the ones that run again may."""
        return {
            step.step_id: (entry, step)
            for entry in self.world.plane.engine.cache.tasks.values()
            for step in entry.open.values()
            if (step.published or step.claimed_by is not None) and not step.parked
        }

    @invariant()
    def the_counts_are_those_of_the_model(self) -> None:
        if self.world.running is None:
            return
        admission = self.world.plane.engine.admission
        gate: Gate | None = admission.gates.get("echo")
        if gate is None:
            assert admission._where == {}
            return
        counted = self.counted()
        waits_to_go_on = {waiting.name for waiting in gate.room.in_order() if waiting.item.go_on is not None}
        may_count = set(counted) - waits_to_go_on
        stopping = {name for name in gate.places if "/" in name}  # code whose instance was away when it was to stop
        assert set(gate.places) - stopping <= may_count
        assert {name for name in may_count if not counted[name][1].asking} <= set(gate.places)
        assert set(admission._where) == set(gate.places) | {waiting.name for waiting in gate.room.in_order()}
        assert not set(gate.places) & {waiting.name for waiting in gate.room.in_order()}
        places = gate.places.values()
        assert +gate._sessions == Counter(place.session_id for place in places)
        assert +gate._keys == Counter(place.key for place in places)
        for name, place in gate.places.items():
            if name in stopping:
                continue
            entry, step = counted[name]
            assert (place.session_id, place.key) == (entry.row.session_id, turn_of(entry, step)[1])

    @invariant()
    def no_limit_is_exceeded_by_what_is_handed_out(self) -> None:
        """More than a limit run only where it was lowered, or where instances have come back with more."""
        gate = self.world.plane.engine.admission.gates.get("echo") if self.world.running is not None else None
        if gate is None:
            self.before = {}
            return
        limits = gate.limits
        now = {("all", ""): len(gate.places)}
        now |= {("session", name): count for name, count in gate._sessions.items()}
        now |= {("key", name): count for name, count in gate._keys.items() if name}
        most = {
            "all": limits.running_max,
            "session": limits.running_max_per_session,
            "key": limits.running_max_per_key,
        }
        for (what, name), count in now.items():
            limit = most[what]
            if limit is not None and not self.may_exceed:
                assert count <= max(limit, self.before.get((what, name), 0)), (what, name)
        self.before, self.may_exceed = now, False

    @invariant()
    def who_could_go_has_gone(self) -> None:
        if self.world.running is None:
            return
        gate = self.world.plane.engine.admission.gates.get("echo")
        now = self.world.manual.now()
        if gate is not None and gate.room.ready:
            opens_at = gate.opens_at(now)
            assert opens_at is None or opens_at > now

    def teardown(self) -> None:
        if self.world.running is not None:
            self.loop.run_until_complete(self._to_the_end())
            self.loop.run_until_complete(self.world.stop())
        self.loop.close()

    async def _to_the_end(self) -> None:
        """With everything taken away that holds back, every task ends, and nothing has a place any more."""
        plane = self.world.plane
        await plane.engine.admission.set_limits("echo", ServiceLimits(running_max=2))
        await plane.engine.admission.resume("echo")
        for name in self.tasks:
            if not (await plane.engine.cache.get(name)).final:
                await plane.pauses.resume(name)
        for instance in self.instances:
            await self._reconnect(instance, forgets=True)
        entries: list[TaskEntry] = []
        for _ in range(20 * len(self.tasks) + 50):
            entries = [await plane.engine.cache.get(name) for name in self.tasks]
            if all(entry.ended for entry in entries):
                break
            self.world.manual.advance(5.0)
            await self.quiet()
            assert sum(len(instance.working) for instance in self.instances) <= 2
            for entry in entries:
                for asking in [step for step in entry.open.values() if step.asking]:
                    await plane.signals.send_input(entry.row.task_id, "yes", step_id=asking.step_id)
            for instance in self.instances:
                for step in tuple(instance.working.values()):
                    del instance.working[step.step_id]
                    instance.answer(step)
            await self.quiet()
        else:
            raise AssertionError([plane.views.task(entry) for entry in entries if not entry.ended])
        self.world.manual.advance(
            2 * SETTINGS.cancel_grace_s + SETTINGS.heartbeat_s
        )  # nobody waits for such code longer
        await self.quiet()
        gate = plane.engine.admission.gates["echo"]
        assert (gate.places, len(gate.room), plane.engine.admission._where) == ({}, 0, {})


TestLimited = Limited.TestCase
TestLimited.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
