"""Erasing a session: nothing of it is found afterwards, neither by a read nor in the files; others are untouched."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, submit, until, world
from tests.support import DEADLINE_S

from llama_deploy import Deployment
from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import (
    SessionNotFoundError,
    StoreUnavailableError,
    TaskCanceledError,
    TaskFailed,
    TaskNotFoundError,
)
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Refused, Wait
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.services import HumanService, ServiceContext, service
from llama_deploy.state_stores.base import TaskFilter
from llama_deploy.testing.recording import completion, dead, record, submission, task_row
from llama_deploy.types import TaskDefinition, TaskResult

SECRET = "the-secret-of-"
"""Stands in everything that a session of these tests records, together with the session's name."""


@service(concurrency=20)
async def tell(context: ServiceContext, text: str) -> str:
    """Streams and says it again."""
    context.stream({"said": text})
    return text * 3


@service(concurrency=20)
async def hold(text: str) -> str:
    """Does not end by itself."""
    await asyncio.Event().wait()
    return text


class Remember(BaseOrchestrator):
    """One step per task; what was said stays in the session."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if get_result_key(task_def.task_id) in state or task_def.task_id in state:
            return [], state
        state[task_def.task_id] = {"asked": task_def.input}
        state["asked last"] = task_def.input
        return [QueueMessage(type=task_def.agent_id or "", data={"text": task_def.input})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state[get_result_key(result.task_id)] = result
        state["said last"] = result.output
        return state


def _found_in_files(folder: Path, text: str) -> list[str]:
    return [path.name for path in sorted(folder.iterdir()) if text.encode() in path.read_bytes()]


async def _use(deployment: Deployment, session: str) -> dict[str, str]:
    """Two tasks that ended, one that runs, one that waits for a person: all of them with the session's secret."""
    client, secret = deployment.client, SECRET + session
    for number in range(2):
        await client.run("tell", input=secret, session_id=session, task_id=f"{session}-{number}")
    await client.submit("hold", input=secret, session_id=session, task_id=f"{session}-runs", idempotency_key=secret)
    await client.submit("clerk", input=secret, session_id=session, task_id=f"{session}-asks")
    async for entry in client.history(f"{session}-asks", follow=True):
        if entry.kind == "input_requested":
            break
    return {f"{session}-{name}": secret for name in ("0", "1", "runs", "asks")}


async def test_nothing_is_left_of_an_erased_session(tmp_path: Path) -> None:
    services = [tell, hold, HumanService("clerk")]
    place = tmp_path / "s.db"
    async with Deployment(
        services, store=place, orchestrator=Remember(), quiet=True, drain_timeout_s=0.0
    ) as deployment:
        client = deployment.client
        await _use(deployment, "mine")
        theirs = await _use(deployment, "theirs")
        assert _found_in_files(tmp_path, SECRET + "mine") != []
        waiting = asyncio.ensure_future(client.result("mine-runs"))
        await asyncio.sleep(0)

        looked = await client.erase_session("mine", dry_run=True)
        assert (looked.tasks, looked.unfinished, looked.state_keys, looked.erased) == (4, 2, 2, False)
        assert (await client.get_task("mine-0")).state == "completed"

        erased = await client.erase_session("mine", by="Ada")
        assert (erased.tasks, erased.unfinished, erased.erased, erased.scrubbed) == (4, 2, True, True)
        with pytest.raises((TaskCanceledError, TaskFailed)):
            await waiting
        for task_id in ("mine-0", "mine-1", "mine-runs", "mine-asks"):
            with pytest.raises(TaskNotFoundError):
                await client.get_task(task_id)
        with pytest.raises(SessionNotFoundError):
            await client.get_session("mine")
        with pytest.raises(SessionNotFoundError):
            await client.erase_session("mine")
        assert _found_in_files(tmp_path, SECRET + "mine") == []

        assert {row.task_id for row in (await client.list_tasks_page()).items} == set(theirs)
        assert await client.result("theirs-0") == (SECRET + "theirs") * 3
        assert (await client.get_session_state("theirs"))["asked last"] == SECRET + "theirs"
        [noted] = await client.list_erasures()
        assert (noted.session_id, noted.by, noted.tasks, noted.scrubbed) == ("mine", "Ada", 4, True)
        again = await client.run("tell", input="new", session_id="mine", task_id="mine-0")
        assert again == "new" * 3
    assert _found_in_files(tmp_path, SECRET + "mine") == []
    assert _found_in_files(tmp_path, SECRET + "theirs") == ["s.db"]


async def test_what_came_of_its_tasks_goes_too() -> None:
    async with world() as made:
        store = made.plane.store
        origins = {"a": "", "b": "child:a", "c": "retry:b", "d": "fork:c", "e": "schedule:a", "f": "child:other"}
        for task_id, origin in origins.items():
            session = "s" if task_id == "a" else task_id
            await record(store, **submission(task_id, task=task_row(task_id, session_id=session, origin=origin)))
            end = task_row(task_id, 2, session_id=session, origin=origin, state="completed")
            await record(store, **completion(task_id, task=end), dead=[dead(task_id, 2)])
        view = await made.plane.erasure.erase("s")
        assert view.tasks == 4
        left = {row.task_id for row in (await store.list_tasks(TaskFilter(), limit=9)).rows}
        assert left == {"e", "f"}
        assert {row.task_id for row in (await store.list_dead(limit=9)).rows} == {"e", "f"}


async def test_an_answer_that_comes_late_is_not_recorded(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t", session_id="s")
        step = await instance.delivery()
        await made.plane.erasure.erase("s")
        instance.stream(step, 0, ["late"])
        instance.answer(step, "late")
        await instance.acknowledged(step)
        assert await made.plane.store.load_task("t") is None
        assert await made.plane.store.load_history("t") == []
        assert await made.plane.store.load_chunks("t") == []
        assert await made.plane.store.load_session("s") is None


async def test_after_a_crash_in_the_middle_it_is_finished_by_asking_again(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", settings=EngineSettings(recovery_grace_s=0.0)) as made:
        for number in range(3):
            await submit(made.plane, task_id=f"t{number}", session_id="s", wait_for_service=True)
        await made.plane.store.delete_tasks(["t0"], erase=True)  # as far as it came
        await made.crash()
        await made.start()
        view = await made.plane.erasure.erase("s")
        assert view.tasks == 2
        assert await made.plane.store.count_tasks() == {}


async def test_a_crash_before_the_files_are_clean_is_made_up_for_at_the_next_start(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await submit(made.plane, text=SECRET, task_id="t", session_id="s", wait_for_service=True)

        reached = asyncio.Event()

        async def never() -> bool:
            reached.set()
            return bool(await asyncio.get_running_loop().create_future())

        made.plane.store.scrub = never  # type: ignore[method-assign]
        erasing = asyncio.ensure_future(made.plane.erasure.erase("s"))
        await reached.wait()
        await made.crash()
        erasing.cancel()
        await asyncio.gather(erasing, return_exceptions=True)
        await made.start()
        await until(lambda: _scrubbed(made.plane.erasure))
        assert _found_in_files(tmp_path, SECRET) == []


async def test_what_is_left_to_erase_is_looked_for_until_the_store_answers(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        erasure, store = made.plane.erasure, made.plane.store
        await submit(made.plane, text=SECRET, task_id="t", session_id="s", wait_for_service=True)
        view = await erasure.look("s")
        view.at = made.plane.engine.clock.now()
        await erasure._note(view)  # an earlier process has come so far
        load, away = store.load_documents, iter(range(2))

        async def sometimes(kind: str) -> dict[str, bytes]:
            if next(away, None) is not None:
                raise StoreUnavailableError("the store cannot be reached now")
            return await load(kind)

        store.load_documents = sometimes  # type: ignore[method-assign]
        await erasure.go_on()
        assert await _scrubbed(erasure)
        assert await store.count_tasks() == {}


async def _scrubbed(erasure: Any) -> bool:
    return all(view.scrubbed for view in await erasure.erasures())


async def test_while_a_backup_is_written_the_bytes_stay_and_that_is_said(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await submit(made.plane, task_id="t", session_id="s", wait_for_service=True)
        tries = 0

        async def busy() -> bool:
            nonlocal tries
            tries += 1
            return tries > 1

        made.plane.store.scrub = busy  # type: ignore[method-assign]
        assert (await made.plane.erasure.erase("s")).scrubbed
        assert tries == 2


async def test_sessions_that_are_erased_at_once_share_the_cleaning_of_the_files() -> None:
    async with world() as made:
        names = [f"s{number}" for number in range(10)]
        for name in names:
            await submit(made.plane, session_id=name, wait_for_service=True)
        rounds, go = 0, asyncio.Event()

        async def scrub() -> bool:
            nonlocal rounds
            rounds += 1
            await go.wait()
            return True

        made.plane.store.scrub = scrub  # type: ignore[method-assign]
        erasing = [asyncio.ensure_future(made.plane.erasure.erase(name)) for name in names]

        async def all_removed() -> bool:
            views = await made.plane.erasure.erasures()
            return len(views) == len(names) and all(view.erased for view in views)

        await until(all_removed)
        go.set()
        assert all(view.scrubbed for view in await asyncio.gather(*erasing))
        assert rounds <= 2


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "sqlite"])
async def test_whoever_waits_for_a_task_that_is_removed_before_its_end_is_told(tmp_path: Path, stored: bool) -> None:
    async with world(tmp_path / "s.db" if stored else None) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        told: list[Any] = []
        port = made.plane.clients.attach(told.extend)
        port.receive([Wait(1, "t")])
        waiting = asyncio.create_task(made.plane.engine.wait_ended(entry, None))
        step = await instance.delivery()
        await made.plane.store.delete_tasks(["t"], erase=True)  # as an erasure does, just before memory lets go of it
        instance.answer(step)
        with pytest.raises(TaskNotFoundError):
            await asyncio.wait_for(waiting, DEADLINE_S)
        await until(lambda: bool(told))
        assert isinstance(told[0], Refused)
        assert json.loads(told[0].problem)["code"] == "LD203"
        port.close()
