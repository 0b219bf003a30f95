"""Nobody is told before the commit: while the disk is slow, every answer about a task is what the store says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, World, outcome, recorded, submit, world

from llama_deploy.errors import CommitConflictError, LlamaDeployError, TaskEndedError
from llama_deploy.state_stores import MemoryStore
from llama_deploy.types import TaskState, TaskView


class SlowDisk(MemoryStore):
    """A store whose commits wait while the disk stands still."""

    still = False

    def _commit(self) -> None:
        if not self.still:
            super()._commit()

    def go_on(self) -> None:
        self.still = False
        self._commit()


async def waits(asked: asyncio.Future[Any]) -> bool:
    """Whether a request is still open after everything that could be done without the disk was done."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not asked.done()


async def ending(made: World, disk: SlowDisk) -> tuple[Any, FakeInstance]:
    """A task whose end is on its way to the disk, which stands still."""
    instance = FakeInstance()
    await instance.connect(made.plane)
    entry = await submit(made.plane, "echo", "in", task_id="t")
    delivery = await instance.delivery()
    disk.still = True
    instance.answer(delivery)
    await asyncio.sleep(0)
    assert entry.final
    return entry, instance


async def listed(made: World) -> list[TaskView]:
    page = await made.plane.views.list_tasks(
        states=None, service=None, session_id=None, oldest_first=False, limit=10, cursor=None
    )
    return page.items


async def test_a_task_that_is_about_to_have_ended_is_shown_as_it_is_recorded() -> None:
    disk = SlowDisk()
    async with world(disk) as made:
        entry, _ = await ending(made, disk)
        views = made.plane.views
        for view in (views.task(entry), (await listed(made))[0]):
            assert (view.state, view.ended_at, view.waiting_for) == (TaskState.WORKING, None, None)
        assert (await views.result(entry)).state is TaskState.WORKING
        disk.go_on()
        await outcome(made.plane, entry)
        assert views.task(entry).state is TaskState.COMPLETED
        assert (await views.result(entry)).state is TaskState.COMPLETED


async def test_a_question_is_shown_once_it_is_recorded() -> None:
    disk = SlowDisk()
    async with world(disk) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, "echo", "in", task_id="t")
        delivery = await instance.delivery()
        disk.still = True
        instance.park(delivery, "which?")
        await asyncio.sleep(0)
        view = made.plane.views.task(entry)
        assert (view.state, view.prompt) == (TaskState.WORKING, None)
        disk.go_on()
        await recorded(entry, 2)
        view = made.plane.views.task(entry)
        assert (view.state, view.waiting_for) == (TaskState.INPUT_REQUIRED, "a person's input for echo: which?")
        assert view.prompt == {"step_id": "t:1", "prompt": "which?"}


def asked_of(made: World, what: str) -> Awaitable[Any]:
    plane = made.plane
    if what == "cancel":
        return plane.signals.cancel("t")
    if what == "input":
        return plane.signals.send_input("t", "late")
    return plane.pauses.pause("t") if what == "pause" else plane.pauses.resume("t")


@pytest.mark.parametrize("what", ["cancel", "input", "pause", "resume"])
async def test_who_comes_too_late_is_told_so_after_the_commit(what: str) -> None:
    disk = SlowDisk()
    async with world(disk) as made:
        await ending(made, disk)
        asked = asyncio.ensure_future(asked_of(made, what))
        assert await waits(asked)
        disk.go_on()
        with pytest.raises(TaskEndedError):
            await asked


async def test_canceling_again_waits_for_the_first_time() -> None:
    disk = SlowDisk()
    async with world(disk) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, "echo", "in", task_id="t")
        disk.still = True
        both = [asyncio.ensure_future(made.plane.signals.cancel("t")) for _ in range(2)]
        assert await waits(both[0])
        assert await waits(both[1])
        disk.go_on()
        assert [entry.row.state for entry in await asyncio.gather(*both)] == ["canceled", "canceled"]


async def test_pausing_again_waits_for_the_first_time() -> None:
    disk = SlowDisk()
    async with world(disk) as made:
        entry = await submit(made.plane, "echo", "in", task_id="t", wait_for_service=True)
        disk.still = True
        both = [asyncio.ensure_future(made.plane.pauses.pause("t")) for _ in range(2)]
        assert await waits(both[0])
        assert await waits(both[1])
        assert not made.plane.views.task(entry).paused
        disk.go_on()
        await asyncio.gather(*both)
        assert made.plane.views.task(entry).paused


async def test_an_end_that_is_refused_is_not_told() -> None:
    """The commit of the end is refused, memory was wrong: who came too late hears of the end that is recorded."""
    disk = SlowDisk()
    async with world(disk) as made:
        entry, _ = await ending(made, disk)
        asked = asyncio.ensure_future(made.plane.signals.cancel("t"))
        assert await waits(asked)
        transition = disk._handed_over.pop()
        transition.settled(_refusal())
        assert await waits(asked)
        assert entry.stale
        disk.go_on()
        with pytest.raises(TaskEndedError):
            await asked
        row = await disk.load_task("t")
        assert row is not None
        assert row.state == "completed"


def _refusal() -> LlamaDeployError:
    return CommitConflictError("the record has changed meanwhile")
