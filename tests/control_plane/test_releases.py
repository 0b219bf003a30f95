"""A task finishes on the release that it began with, for as long as that is there; then it goes on, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, World, history, outcome, submit, until, world
from tests.control_plane.test_counts import Chain

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import InvalidRequestError, ReleaseNotFoundError, ServiceUnknownError
from llama_deploy.messages import frames
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy, ServiceDefinition

pytestmark = pytest.mark.anyio

PATIENT = EngineSettings(lease_s=10_000.0)
"""Instances of tests say nothing while the clock is moved."""


def instance(release: str, *services: str, name: str = "", **options: Any) -> FakeInstance:
    return FakeInstance(services or ("echo",), instance_id=name or f"of-{release}", release=release, **options)


async def two_releases(here: World, *, text: str = "3") -> tuple[FakeInstance, FakeInstance, Any]:
    """A task that has begun with release 1, whose first step nobody has answered yet, and release 2, which follows."""
    old, new = instance("1"), instance("2")
    await old.connect(here.plane)
    await here.plane.engine.releases.use("1")
    task = await submit(here.plane, None, text, task_id="began-with-1")
    await old.delivery()
    await new.connect(here.plane)
    await here.plane.engine.releases.use("2")
    return old, new, task


async def answered(instance: FakeInstance, number: int, text: str = "x") -> None:
    step = await instance.delivery(number)
    instance.answer(step, text)
    await instance.acknowledged(step)


def tasks_of(view: Any) -> dict[str, int]:
    return {one.release: one.tasks for one in view.items}


async def test_every_step_of_a_task_goes_to_the_release_that_it_began_with() -> None:
    async with world(orchestrator=Chain()) as here:
        old, new, task = await two_releases(here)
        later = await submit(here.plane, None, "2")
        assert tasks_of(await here.plane.engine.releases.view()) == {"1": 1, "2": 1}
        for number in (1, 2, 3):
            await answered(old, number)
            if number < 3:
                await answered(new, number)
        await outcome(here.plane, task)
        await outcome(here.plane, later)
        assert (len(old.all(frames.Deliver)), len(new.all(frames.Deliver))) == (3, 2)
        assert [entry.release for entry in await history(here.plane, task)] == ["1", None, None, None]
        assert (await history(here.plane, later))[0].release == "2"
        view = await here.plane.engine.releases.view()
        assert (tasks_of(view), view.current) == ({"1": 0, "2": 0}, "2")
        assert view.items[0].instances == {"echo": 1}


async def test_a_task_says_which_release_it_is_bound_to_and_an_instance_which_it_runs() -> None:
    async with world(orchestrator=Chain()) as here:
        _, _, task = await two_releases(here)
        assert here.plane.views.task(task).release == "1"
        shown = here.plane.views.service("echo")
        assert {one.instance_id: one.release for one in shown.instances} == {"of-1": "1", "of-2": "2"}


async def test_what_a_retired_release_has_left_goes_on_with_the_current_one_and_says_so() -> None:
    async with world(orchestrator=Chain()) as here:
        old, new, task = await two_releases(here)
        await here.plane.engine.releases.retire("1", by="anna")
        await answered(old, 1)  # what it holds it finishes
        await answered(new, 1)
        await answered(new, 2)
        await outcome(here.plane, task)
        entries = await history(here.plane, task)
        assert [entry.kind for entry in entries] == ["submitted", "answered", "moved", "answered", "answered"]
        assert (entries[2].release, entries[2].state) == ("2", "working")
        assert entries[2].reason == "release 1 goes on no more: it is retired"
        with pytest.raises(ReleaseNotFoundError):
            await here.plane.engine.releases.retire("1")
        with pytest.raises(InvalidRequestError):
            await here.plane.engine.releases.retire("2")


async def test_what_waits_in_the_queue_of_a_retired_release_is_taken_by_the_current_one() -> None:
    async with world(orchestrator=Chain()) as here:
        old, new = instance("1", concurrency=1), instance("2")
        await old.connect(here.plane)
        await here.plane.engine.releases.use("1")
        await submit(here.plane, None, "1")
        waits = await submit(here.plane, None, "1")
        await old.delivery()
        await new.connect(here.plane)
        await here.plane.engine.releases.use("2")
        assert here.plane.views.service("echo").waiting == 1
        assert "a free instance of echo" in (here.plane.views.task(waits).waiting_for or "")
        assert [one.task_id for one in here.plane.views.waiting("echo", first=0, limit=9).items] == [waits.row.task_id]
        assert not new.all(frames.Deliver)
        await here.plane.engine.releases.retire("1")
        assert (await new.delivery()).task_id == waits.row.task_id


async def test_the_time_to_finish_is_over_also_for_a_task_that_waits_for_a_person() -> None:
    async with world(orchestrator=Chain(), clock=ManualClock(), settings=PATIENT) as here:
        old, new, task = await two_releases(here, text="1")
        step = await old.delivery()
        old.park(step, "go on?", resume="redeliver", snapshot=b"{}")
        await until(lambda: here.plane.views.task(task).state.value == "input_required")
        view = await here.plane.engine.releases.view()
        assert view.items[0].finish_by == pytest.approx(here.manual.now() + 600.0)
        here.manual.advance(599.0)
        assert tasks_of(await here.plane.engine.releases.view()) == {"1": 1, "2": 0}
        here.manual.advance(2.0)
        await until(lambda: here.plane.engine.releases.topics("echo") == ["echo", "echo/2"])
        await here.plane.signals.send_input("began-with-1", "yes")
        answer = await new.delivery()
        assert (answer.inputs, answer.snapshot) == ([b'"yes"'], b"{}")
        new.answer(answer)
        await outcome(here.plane, task)
        assert [one.kind for one in await history(here.plane, task)][-2:] == ["moved", "answered"]


async def test_a_lost_instance_of_an_earlier_release_is_waited_for_and_then_it_is_not() -> None:
    async with world(orchestrator=Chain(), clock=ManualClock(), settings=PATIENT) as here:
        old, new, task = await two_releases(here)
        old.drop()
        here.manual.advance(1.0)
        await until(lambda: not here.plane.engine.registry.services["echo"].releases["1"])
        reason = here.plane.views.task(task).waiting_for
        assert reason == 'nobody of release 1 serves "echo" now (it is expected back)'
        back = instance("1", name="back")
        await back.connect(here.plane)
        assert (await back.delivery()).attempt == 2
        back.drop()
        here.manual.advance(1.0)
        await until(lambda: not here.plane.engine.registry.services["echo"].releases["1"])
        here.manual.advance(28.0)
        await here.plane.engine.releases.view()
        assert not new.all(frames.Deliver)
        moved = await new.delivery_in_time(here)
        assert moved.attempt == 3
        entry = next(entry for entry in await history(here.plane, task) if entry.kind == "moved")
        assert (entry.release, entry.reason) == ("2", "release 1 goes on no more: no instance of it serves echo")
        await answered(new, 1)
        await answered(new, 2)  # and stays there
        await answered(new, 3)
        await outcome(here.plane, task)


async def test_an_instance_that_leaves_on_purpose_is_not_waited_for() -> None:
    async with world(orchestrator=Chain()) as here:
        old, new, _ = await two_releases(here)
        old.send(frames.Goodbye())
        assert (await new.delivery()).attempt == 2


async def test_releases_and_what_is_bound_to_them_survive_a_crash(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", orchestrator=Chain()) as here:
        old, _, task = await two_releases(here, text="2")
        step = await old.delivery()
        old.park(step, resume="redeliver", snapshot=None)
        await until(lambda: here.plane.views.task(task).state.value == "input_required")
        await here.crash()
        await here.start()
        new = instance("2")
        await new.connect(here.plane)
        view = await here.plane.engine.releases.view()  # nobody has touched the task since the start
        assert (tasks_of(view), [one.state for one in view.items]) == ({"1": 1, "2": 0}, ["finishing", "current"])
        await here.plane.signals.send_input("began-with-1", "yes")
        old = instance("1")
        await old.connect(here.plane)  # and its old release comes back later than the new one
        await answered(old, 1)
        await answered(old, 2)
        await outcome(here.plane, "began-with-1")
        assert not new.all(frames.Deliver)


async def test_a_task_that_moved_is_moved_after_a_crash_as_well(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", orchestrator=Chain()) as here:
        old, new, _ = await two_releases(here)
        await here.plane.engine.releases.retire("1")
        await answered(old, 1)
        await new.delivery()
        await here.crash()
        await here.start()
        new = instance("2")
        await new.connect(here.plane)
        await new.delivery()
        entries = await history(here.plane, "began-with-1")
        assert [entry.kind for entry in entries].count("moved") == 1
        assert (await here.plane.engine.cache.get("began-with-1")).release == "2"


async def test_instances_of_no_release_serve_what_no_release_does() -> None:
    async with world(orchestrator=Chain()) as here:
        plain = FakeInstance(["echo", "mail"], instance_id="plain")
        await plain.connect(here.plane)
        before = await submit(here.plane, None, "2", task_id="bound-to-none")
        await plain.delivery()
        old = instance("1")
        await old.connect(here.plane)  # says a release, and nobody has named one yet
        await here.plane.engine.releases.use("1")
        await answered(plain, 1)
        await answered(plain, 2)  # what is bound to none stays with those of none, while there are any
        await outcome(here.plane, before)
        await submit(here.plane, None, "1")
        await answered(old, 1)
        old.send(frames.Goodbye())
        await submit(here.plane, None, "1")
        await plain.delivery(3)


async def test_without_a_named_release_instances_are_alike_and_what_waits_is_found_when_one_is_named() -> None:
    async with world(orchestrator=Chain()) as here:
        first, second = instance("1", concurrency=1), instance("2", concurrency=1)
        await first.connect(here.plane)
        await second.connect(here.plane)
        for _ in range(3):
            await submit(here.plane, None, "1")
        await first.delivery()
        await second.delivery()
        assert here.plane.views.service("echo").waiting == 1
        await here.plane.engine.releases.use("2")
        assert here.plane.views.service("echo").waiting == 1
        await answered(second, 1)
        await answered(second, 2)
        await submit(here.plane, None, "1")
        await answered(second, 3)
        assert len(first.all(frames.Deliver)) == 1


async def test_a_service_that_the_new_release_has_no_more_finishes_what_waits_for_it_and_takes_nothing_new() -> None:
    async with world() as here:
        old, new = instance("1", "gone", concurrency=1), instance("2", "other")
        await old.connect(here.plane)
        await here.plane.engine.releases.use("1")
        running, waits = await submit(here.plane, "gone"), await submit(here.plane, "gone")
        await new.connect(here.plane)
        await here.plane.engine.releases.use("2")
        with pytest.raises(ServiceUnknownError):
            await submit(here.plane, "gone")
        await answered(old, 1)
        await answered(old, 2)
        await outcome(here.plane, running)
        await outcome(here.plane, waits)


async def test_the_current_release_says_how_a_service_is_defined() -> None:
    async with world() as here:
        old, new = instance("1", concurrency=2), instance("2", concurrency=5)
        await old.connect(here.plane)
        await here.plane.engine.releases.use("1")
        await new.connect(here.plane)

        def concurrency() -> int:
            definition = here.plane.engine.registry.definition("echo")
            assert definition is not None
            return definition.concurrency

        assert concurrency() == 2
        await here.plane.engine.releases.use("2")
        assert concurrency() == 5
        old.drop()
        await old.connect(here.plane)
        assert concurrency() == 5


async def test_what_a_step_calls_is_bound_to_its_callers_release_and_a_retry_to_the_current_one() -> None:
    once = RetryPolicy(max_retries=0)
    services = [ServiceDefinition(service_name=name, description="", retry=once) for name in ("caller", "called")]
    async with world() as here:
        old = FakeInstance(services, instance_id="old", release="1")
        new = FakeInstance(services, instance_id="new", release="2")
        await old.connect(here.plane)
        await here.plane.engine.releases.use("1")
        await submit(here.plane, "caller", task_id="parent")
        step = await old.delivery()
        await new.connect(here.plane)
        await here.plane.engine.releases.use("2")
        old.send(frames.Call(step.step_id, 1, "#1", b'{"input": "x", "agent_id": "called"}'))
        called = await old.delivery(2)
        assert called.service == "called"
        old.answer(called)
        await old.got(frames.Returned)
        old.fail(step, retryable=False)
        assert (await outcome(here.plane, "parent")).status == "failed"
        again, _ = await here.plane.repeats.retry("parent", from_start=True)
        assert (await new.delivery()).task_id == again.row.task_id


async def test_the_oldest_of_too_many_releases_is_retired() -> None:
    async with world(settings=EngineSettings(releases_finishing_max=2)) as here:
        names = ["1", "2", "3", "4"]
        for name in names:
            one = instance(name)
            await one.connect(here.plane)
            await here.plane.engine.releases.use(name)
            await submit(here.plane, task_id=f"of-{name}")
            await one.delivery()
        assert tasks_of(await here.plane.engine.releases.view()) == {"2": 1, "3": 1, "4": 1}


async def test_going_back_to_a_release_that_still_finishes() -> None:
    async with world(orchestrator=Chain()) as here:
        old, new, task = await two_releases(here)
        later = await submit(here.plane, None, "2")
        view = await here.plane.engine.releases.use("1")
        assert (view.current, [one.release for one in view.items]) == ("1", ["2", "1"])
        await submit(here.plane, None, "1")
        for number in (1, 2, 3, 4):
            await answered(old, number)
        await answered(new, 1)
        await answered(new, 2)
        await outcome(here.plane, task)
        await outcome(here.plane, later)


async def test_no_time_at_all_leaves_the_release_before_what_it_holds() -> None:
    async with world(orchestrator=Chain()) as here:
        old, new = instance("1"), instance("2")
        await old.connect(here.plane)
        await here.plane.engine.releases.use("1")
        task = await submit(here.plane, None, "2")
        await old.delivery()
        await new.connect(here.plane)
        view = await here.plane.engine.releases.use("2", finish_within_s=0.0)
        assert [one.release for one in view.items] == ["2"]
        await answered(old, 1)
        await answered(new, 1)
        await outcome(here.plane, task)


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 201])
async def test_a_name_that_is_none_is_refused(name: str) -> None:
    async with world() as here:
        with pytest.raises(InvalidRequestError):
            await here.plane.engine.releases.use(name)
        assert (await here.plane.engine.releases.view()).items == []


async def test_an_instance_whose_release_is_no_name_is_refused() -> None:
    async with world() as here:
        wrong = instance("a/b", name="wrong")
        wrong.attach(here.plane)
        wrong.hello()
        refused = await wrong.got(frames.Refused)
        assert b"release" in refused.problem


async def test_a_task_of_a_release_costs_what_a_task_costs(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as here:
        statistics = here.plane.store.statistics
        found = []
        for name in ("", "1", "2"):
            one = instance(name, name=f"i{name}")
            await one.connect(here.plane)
            if name:
                await here.plane.engine.releases.use(name)
            await submit(here.plane)
            await answered(one, 1)  # by now what is known of the service is recorded as well
            await until(lambda: here.plane.store.backlog == 0)
            before = (statistics.transitions, statistics.commits, statistics.statements, statistics.rows_written)
            task = await submit(here.plane)
            await answered(one, 2)
            await outcome(here.plane, task)
            after = (statistics.transitions, statistics.commits, statistics.statements, statistics.rows_written)
            found.append(tuple(b - a for a, b in zip(before, after, strict=True)))
            one.send(frames.Goodbye())
        assert found[0] == found[1] == found[2] == (2, 2, 6, 6)


SEEDS = 8


class Crowd:
    """Instances that come, go, die and answer, and releases that follow one another, as a seed has it."""

    def __init__(self, here: World, seed: int) -> None:
        self.here = here
        self.chance = random.Random(seed)
        self.instances: list[FakeInstance] = []
        self.answered: dict[FakeInstance, set[tuple[str, int]]] = {}
        self.tasks: list[str] = []
        self.number = 0

    @property
    def releases(self) -> Any:
        return self.here.plane.engine.releases

    async def come(self, release: str) -> None:
        """One more instance of a release."""
        made = instance(release, name=f"{release}-{len(self.answered)}", concurrency=self.chance.choice((1, 3)))
        await made.connect(self.here.plane)
        self.instances.append(made)
        self.answered[made] = set()

    async def follow(self) -> None:
        """Another release: a new one, or one that was there before."""
        back = self.number > 1 and self.chance.random() < 0.3
        self.number += not back
        name = str(self.chance.randint(1, self.number - 1) if back else self.number)
        await self.come(name)
        await self.releases.use(name, finish_within_s=self.chance.choice((0.0, 5.0, 500.0)))

    async def retire(self) -> None:
        finishing = [one.release for one in (await self.releases.view()).items if one.state == "finishing"]
        if finishing:
            with contextlib.suppress(ReleaseNotFoundError):  # its time may just be over
                await self.releases.retire(self.chance.choice(finishing))

    async def leave(self) -> None:
        """An instance is gone, on purpose or not; one of the current release stays, or comes again."""
        gone = self.instances.pop(self.chance.randrange(len(self.instances)))
        if self.chance.random() < 0.5:
            gone.send(frames.Goodbye())
        else:
            gone.drop()
        if not any(one.release == self.releases.current for one in self.instances):
            await self.come(self.releases.current)

    async def crash(self) -> None:
        """The control plane is gone and comes back; so do its instances, as new ones."""
        await self.here.crash()
        await self.here.start()
        releases = [one.release for one in self.instances]
        self.instances = []
        for release in releases:
            await self.come(release)

    async def submit(self) -> None:
        task = await submit(self.here.plane, None, str(self.chance.randint(1, 4)), wait_for_service=True)
        self.tasks.append(task.row.task_id)

    async def answer(self) -> None:
        for one in self.instances:
            for step in one.all(frames.Deliver):
                if (step.step_id, step.attempt) not in self.answered[one] and self.chance.random() < 0.7:
                    self.answered[one].add((step.step_id, step.attempt))
                    one.answer(step, one.release)

    async def run(self, moves: int) -> None:
        await self.follow()
        doing = [self.submit, self.submit, self.answer, self.answer, self.follow, self.retire, self.leave, self.crash]
        for _ in range(moves):
            await self.chance.choices(doing, weights=[6, 6, 8, 8, 2, 2, 3, 1])[0]()
            self.here.manual.advance(self.chance.choice((0.0, 0.1, 1.0, 7.0)))
            await asyncio.sleep(0)

    async def all_end(self) -> None:
        """Whoever is there goes on answering until every task has ended, and time goes on."""

        async def ended() -> bool:
            await self.answer()
            self.here.manual.advance(0.5)
            entries = [await self.here.plane.engine.cache.get(task_id) for task_id in self.tasks]
            return all(entry.ended for entry in entries)

        await until(ended)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_happens_every_task_ends_and_each_answer_is_of_the_release_that_it_was_bound_to(
    seed: int, tmp_path: Path
) -> None:
    settings = EngineSettings(lease_s=1e6, attempts_max=1000, overdue_s=3.0)
    async with world(tmp_path / "s.db", orchestrator=Chain(), clock=ManualClock(), settings=settings) as here:
        crowd = Crowd(here, seed)
        await crowd.run(80)
        await crowd.all_end()
        for task_id in crowd.tasks:
            bound = ""
            for entry in await history(here.plane, task_id):
                if entry.kind == "answered" and entry.result is not None:
                    assert entry.result["result"] == bound, task_id
                bound = entry.release or bound
        assert await here.plane.store.count_tasks() == {"completed": len(crowd.tasks)}


async def test_a_release_that_became_current_again_as_its_time_was_over_is_not_retired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as here:
        releases, store = here.plane.engine.releases, here.plane.store
        await releases.use("1")
        await releases.use("2", finish_within_s=10.0)
        recording, go_on = asyncio.Event(), asyncio.Event()
        put_document = store.put_document

        async def put_slowly(kind: str, name: str, data: bytes) -> None:
            recording.set()
            await go_on.wait()
            await put_document(kind, name, data)

        monkeypatch.setattr(store, "put_document", put_slowly)
        back = asyncio.create_task(releases.use("1"))
        await recording.wait()
        forward = asyncio.create_task(releases.use("3", finish_within_s=600.0))
        await asyncio.sleep(0)  # it waits for its turn; then the time is over
        here.manual.advance(11.0)
        go_on.set()
        await back
        await forward
        await until(lambda: not releases._changing.locked() and not here.plane.engine._background)
        states = {one.release: one.state for one in (await releases.view()).items}
        assert states == {"1": "finishing", "2": "finishing", "3": "current"}
        here.manual.advance(601.0)
        await until(lambda: list(releases._known) == ["3"])
