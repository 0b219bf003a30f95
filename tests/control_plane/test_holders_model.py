"""Random sequences of everything that makes an attempt change hands, beside instances that know what they have said.

Control planes die and others follow, instances are cut off, come back with what they hold, or die; meanwhile they run,
stream, let go for a person, and answer. Whatever happens: what is on record of an attempt's stream was said by one
instance in one run of its code, in order and whole; and at the end every task ends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.control_plane.harness import FakeInstance, World, is_at_rest, submit

from llama_deploy.control_plane import EngineSettings
from llama_deploy.messages import frames
from llama_deploy.messages.frames import Acknowledged, CancelStep, Deliver, Disowned, EventsCommitted, Welcome
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy

SETTINGS = EngineSettings(
    lease_s=1e9, reconnect_grace_s=0.5, recovery_grace_s=1.0, claim_recorded_after_s=3.0, attempts_max=1_000
)
RETRY = RetryPolicy(max_retries=1_000, initial_s=1.0, multiplier=1.0, jitter=0.0)
CALM_TURNS = 5
"""What is quiet may be followed by what it has caused."""
TURNS_MAX = 10_000
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["streams", "streams", "connect", "is_cut_off", "dies", "time_passes", "ends", "fails"]),
        st.integers(0, 1),
    ),
    max_size=5,
)


class Run:
    """One run of a step's code in an instance."""

    def __init__(self, step: Deliver, name: str) -> None:
        self.step = step
        self.name = name
        self.said = 0
        self.events: list[bytes] = []
        self.committed = step.events_from
        self.answer: frames.Answer | None = None

    def says(self) -> None:
        """The next event."""
        event = {"run": self.name, "attempt": self.step.attempt, "number": self.step.events_from + self.said}
        self.events.append(msgspec.json.encode(event))
        self.said += 1


class Speaking(FakeInstance):
    """An instance that keeps what is not acknowledged, and says it again, as the runner does."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(instance_id=instance_id, concurrency=20, retry=RETRY)
        self.runs: dict[str, Run] = {}
        self.begun = 0

    def _receive(self, operations: list[Any]) -> None:
        before = len(self.received)
        super()._receive(operations)
        for operation in self.received[before:]:
            if isinstance(operation, Deliver):
                self._deliver(operation)
            elif isinstance(operation, CancelStep):
                self.runs.pop(operation.step_id, None)
            elif isinstance(operation, Disowned):
                self._forget(operation.step_ids)
            elif isinstance(operation, Acknowledged):
                self._forget([name for name in operation.step_ids if name in self.runs and self.runs[name].answer])
            elif isinstance(operation, EventsCommitted):
                self._committed(operation)
            elif isinstance(operation, Welcome):
                self._forget(operation.disowned)
                for run in self.runs.values():
                    self._repeat(run)

    def _forget(self, step_ids: list[str]) -> None:
        for step_id in step_ids:
            self.runs.pop(step_id, None)

    def _deliver(self, step: Deliver) -> None:
        known = self.runs.get(step.step_id)
        if known is None or known.step.attempt < step.attempt:
            self.begun += 1
            self.runs[step.step_id] = Run(step, f"{self.instance_id}/{self.begun}")

    def _committed(self, operation: EventsCommitted) -> None:
        run = self.runs.get(operation.step_id)
        if run is not None and run.step.attempt == operation.attempt and operation.count > run.committed:
            del run.events[: operation.count - run.committed]
            run.committed = operation.count

    def _repeat(self, run: Run) -> None:
        if run.answer is not None:
            self._answer(run)
        elif run.events:
            self.send(frames.Events(run.step.step_id, run.step.attempt, run.committed, list(run.events)))

    def streams(self, run: Run) -> None:
        """Its code says one thing more."""
        if run.answer is None:
            run.says()
            if self.port is not None:
                first = run.committed + len(run.events) - 1
                self.send(frames.Events(run.step.step_id, run.step.attempt, first, run.events[-1:]))

    def ends(self, run: Run, *, well: bool) -> None:
        """Its code has ended."""
        if run.answer is None:
            status = {"status": "completed"} if well else {"status": "failed", "error": {"message": "no"}}
            result = msgspec.json.encode({"task_id": "", "history": [], "result": run.name, **status})
            run.answer = frames.Answer(run.step.step_id, run.step.attempt, result, 1.0, 2.0)
            if self.port is not None:
                self._answer(run)

    def _answer(self, run: Run) -> None:
        assert run.answer is not None
        self.send(msgspec.structs.replace(run.answer, events_from=run.committed, events=list(run.events)))


class ChangingHands(RuleBasedStateMachine):
    """One control plane after the other on one store, and two instances."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World(clock=ManualClock(), settings=SETTINGS)
        self.instances = [Speaking(f"instance-{number}") for number in range(2)]
        self.tasks: list[str] = []

    def run(self, work: Any) -> Any:
        """Do something and wait until all that follows from it has happened."""

        async def done() -> Any:
            value = await work
            await self.quiet()
            return value

        return self.loop.run_until_complete(done())

    async def quiet(self) -> None:
        calm = 0
        for _ in range(TURNS_MAX):
            calm = calm + 1 if is_at_rest(self.world.plane) else 0
            if calm == CALM_TURNS:
                return
            await asyncio.sleep(0)  # nothing here waits for anything but the loop, and the clock that stands still
        raise AssertionError("it does not come to rest")

    @initialize(tasks=st.integers(1, 2))
    def start(self, tasks: int) -> None:
        """The same attempts are with both instances: where it becomes interesting."""
        self.run(self.world.start())
        self.run(self._connect(self.instances[0]))
        for _ in range(tasks):
            self.submit()
        self.a_life([1], grace_is_over=True, then=[])
        assert all(set(one.runs) == {f"{name}:1" for name in self.tasks} for one in self.instances)

    def submit(self) -> None:
        name = f"task{len(self.tasks)}"
        self.tasks.append(name)
        self.run(submit(self.world.plane, task_id=name, wait_for_service=True))

    # --- what happens -----------------------------------------------------------------------------------------------

    @rule(back=st.sampled_from([[], [0], [1], [0, 1], [1, 0]]), grace_is_over=st.booleans(), then=ACTIONS)
    def a_life(self, back: list[int], *, grace_is_over: bool, then: list[tuple[str, int]]) -> None:
        """A control plane dies and another one leads. Some instances come back in time, in an order of their own.

        What the others hold may be given away. Then this and that happens.
        """
        self.run(self._begin(back))
        if grace_is_over:
            self.run(self._wait(1.1))
        for what, number in then:
            self.run(getattr(self, f"_{what}")(self.instances[number]))

    async def _begin(self, back: list[int]) -> None:
        await self.world.crash()
        for instance in self.instances:
            instance.port = None
        await self.world.start()
        for number in back:
            await self._connect(self.instances[number])

    async def _wait(self, seconds: float) -> None:
        self.world.manual.advance(seconds)

    async def _time_passes(self, _: Speaking) -> None:
        await self._wait(4.0)

    async def _connect(self, instance: Speaking) -> None:
        if instance.port is None:
            held = [(run.step.step_id, run.step.attempt) for run in instance.runs.values()]
            await instance.connect(self.world.plane, held)

    async def _is_cut_off(self, instance: Speaking) -> None:
        if instance.port is not None:
            instance.drop()

    async def _dies(self, instance: Speaking) -> None:
        await self._is_cut_off(instance)
        self.instances[self.instances.index(instance)] = Speaking(f"{instance.instance_id}'")

    async def _streams(self, instance: Speaking) -> None:
        for run in list(instance.runs.values()):
            for _ in range(2):
                instance.streams(run)

    async def _ends(self, instance: Speaking) -> None:
        for run in list(instance.runs.values()):
            instance.ends(run, well=True)

    async def _fails(self, instance: Speaking) -> None:
        for run in list(instance.runs.values()):
            instance.ends(run, well=False)

    # --- what is always true ----------------------------------------------------------------------------------------

    @invariant()
    def what_is_on_record_of_an_attempt_is_of_one_run_of_its_code(self) -> None:
        if self.world.running is not None:
            self.loop.run_until_complete(self._look())

    async def _look(self) -> None:
        for task_id in self.tasks:
            chunks = await self.world.plane.store.load_chunks(task_id, first=0, limit=1_000)
            runs: dict[int, list[tuple[str, int]]] = defaultdict(list)
            number = 0
            for chunk in chunks:
                assert chunk.first == number
                number += chunk.count
                for event in msgspec.json.decode(chunk.data):
                    if "run" in event:
                        runs[event["attempt"]].append((event["run"], event["number"]))
            for run in (one.runs.get(f"{task_id}:1") for one in self.instances):
                if run is not None:  # what it was told is recorded is its own
                    said = runs[run.step.attempt][run.step.events_from : run.committed]
                    assert {name for name, _ in said} <= {run.name}, (task_id, run.step.attempt, run.name, said)
            for attempt, events in runs.items():
                assert len({name for name, _ in events}) <= 1, (task_id, attempt, events)
                assert [number for _, number in events] == list(range(len(events))), (task_id, attempt, events)

    def teardown(self) -> None:
        if self.world.running is not None:
            self.loop.run_until_complete(self._to_the_end())
            self.loop.run_until_complete(self.world.stop())
        self.loop.close()

    async def _to_the_end(self) -> None:
        """With everybody there, every task ends."""
        plane = self.world.plane
        for _ in range(200):
            entries = [await plane.engine.cache.get(name) for name in self.tasks]
            if all(entry.ended for entry in entries):
                await self._look()
                return
            for instance in self.instances:
                await self._connect(instance)
            self.world.manual.advance(5.0)
            await self.quiet()
            for instance in self.instances:
                for run in list(instance.runs.values()):
                    instance.ends(run, well=True)
            await self.quiet()
        raise AssertionError([plane.views.task(await plane.engine.cache.get(name)) for name in self.tasks])


ChangingHands.TestCase.settings = settings(max_examples=100, stateful_step_count=8, deadline=None)
TestChangingHands = ChangingHands.TestCase
