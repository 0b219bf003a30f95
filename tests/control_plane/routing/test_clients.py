"""Every method of both clients, asked at a control plane that does not lead what it is about."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from tests.control_plane.harness import until
from tests.control_plane.served_planes import ServedPlane, served_planes
from tests.support import DEADLINE_S

from llama_deploy.client import Client, SyncClient
from llama_deploy.errors import (
    DeadLetterNotFoundError,
    LedgerNotFoundError,
    LlamaDeployError,
    NotOfferedError,
    OrchestratorError,
    TaskEndedError,
    TaskNotFoundError,
)
from llama_deploy.types import Artifact


class Blocking:
    """A `SyncClient` with the form of the other one, for tests that are written once."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        if inspect.isgeneratorfunction(method) or name in ITERATING:

            async def items(*args: Any, **options: Any) -> AsyncIterator[Any]:
                for item in await asyncio.to_thread(lambda: list(method(*args, **options))):
                    yield item

            return items

        async def call(*args: Any, **options: Any) -> Any:
            return await asyncio.to_thread(lambda: method(*args, **options))

        return call


ITERATING = {"stream", "history", "list_tasks", "list_sessions", "list_waiting", "ledger", "chunks", "logs"}


@dataclass
class Case:
    """What a case works with: a client of control plane `here`, which asks about what `there` leads."""

    client: Any
    here: ServedPlane
    there: ServedPlane
    at_there: Client
    folder: Path
    gates: Callable[[str], asyncio.Event]

    def forwards(self) -> int:
        return self.here.passed_on + self.here.plane.peers.passed_on

    @contextmanager
    def passing_on(self, count: int = 1) -> Iterator[None]:
        """Whatever is asked within costs so many requests of one control plane to the other, there and nowhere else."""
        before, back = self.forwards(), self.there.passed_on + self.there.plane.peers.passed_on
        yield
        assert self.forwards() - before == count, "requests from the one that was asked to the one that leads"
        assert self.there.passed_on + self.there.plane.peers.passed_on == back, "none on the way back"

    async def ended(self, service: str = "echo", **arguments: Any) -> str:
        """A task that the other one leads, and that has ended."""
        task_id = await self.at_there.submit(service, task_id=self.there.led(), **arguments)
        await self.at_there.wait(task_id)
        return task_id

    async def waiting(self, session_id: str | None = None) -> str:
        """A task that the other one leads, and that waits for a gate of its name."""
        task_id = self.there.led()
        await self.at_there.submit("gate", name=task_id, task_id=task_id, session_id=session_id)
        await until(lambda: any(s.claimed_by for s in self.there.plane.engine.cache.tasks[task_id].open.values()))
        return task_id

    async def dead(self) -> str:
        """A step that was given up, of a task that the other one leads."""
        return f"{await self.ended('fail', text='x')}:1"

    async def session(self) -> str:
        """A session that the other one leads, with one task that has ended."""
        session_id = self.there.led()
        await self.at_there.run("echo", value=1, session_id=session_id)
        return session_id


async def run(c: Case) -> None:
    with c.passing_on():
        assert await c.client.run("echo", value=[1, "ü"], task_id=c.there.led()) == [1, "ü"]
    with c.passing_on(0):
        assert await c.client.run("echo", value=2, task_id=c.here.led()) == 2
    with c.passing_on():
        assert await c.client.run("echo", value=3, session_id=c.there.led()) == 3
    with pytest.raises(LlamaDeployError) as there, c.passing_on():
        await c.client.run("nobody", task_id=c.there.led())
    with pytest.raises(LlamaDeployError) as here:
        await c.client.run("nobody", task_id=c.here.led())
    assert (type(there.value), there.value.why, there.value.fix) == (type(here.value), here.value.why, here.value.fix)
    key, made = token_hex(4), c.there.led()
    assert await c.at_there.run("echo", value=4, task_id=made, idempotency_key=key) == 4
    with c.passing_on():
        assert await c.client.submit("echo", value=4, task_id=c.here.led(), idempotency_key=key) == made


async def submit(c: Case) -> None:
    task_id = c.there.led()
    with c.passing_on():
        assert await c.client.submit("echo", value=1, task_id=task_id) == task_id
    with c.passing_on():  # repeated, it finds the first one
        assert await c.client.submit("echo", value=1, task_id=task_id) == task_id


async def submit_many(c: Case) -> None:
    ids = [c.there.led() for _ in range(20)] + [c.here.led() for _ in range(20)]
    with c.passing_on(20):
        assert await c.client.submit_many("echo", [{"value": n} for n in range(40)], task_ids=ids) == ids
    assert await asyncio.gather(*(c.client.result(task_id) for task_id in ids)) == list(range(40))


async def wait(c: Case) -> None:
    task_id = await c.waiting()
    with c.passing_on():
        waited = asyncio.ensure_future(c.client.wait(task_id))
        await until(lambda: c.there.plane.engine.cache.tasks[task_id].ended_callbacks != [])
        c.gates(task_id).set()
        assert (await waited).result == f"through {task_id}"
    with pytest.raises(TaskNotFoundError):
        await c.client.wait("no-such-task")


async def result(c: Case) -> None:
    task_id = await c.ended(value=7)
    with c.passing_on():
        assert await c.client.result(task_id) == 7


async def stream(c: Case) -> None:
    task_id = await c.ended("tell", events=1000)
    with c.passing_on():
        assert [(e.index, e.data) async for e in c.client.stream(task_id)] == [(n, n) for n in range(1000)]
    with c.passing_on():
        assert [e.index async for e in c.client.stream(task_id, first=990)] == list(range(990, 1000))
    live = await c.client.submit("tell", events=1000, gate="live", task_id=c.there.led())
    c.gates("live").set()
    with c.passing_on():
        assert [e.index async for e in c.client.stream(live)] == list(range(1000))


async def history(c: Case) -> None:
    task_id = await c.ended(value=1)
    with c.passing_on():
        entries = [entry async for entry in c.client.history(task_id)]
    with c.passing_on():
        assert [entry async for entry in c.client.history(task_id, follow=True)] == entries
    assert [entry.seq for entry in entries] == [1, 2]


async def get_task(c: Case) -> None:
    task_id = await c.waiting()
    with c.passing_on():
        assert await c.client.get_task(task_id) == await c.at_there.get_task(task_id)
    c.gates(task_id).set()
    with pytest.raises(TaskNotFoundError), c.passing_on(0):
        await c.client.get_task("no-such-task")


async def list_tasks(c: Case) -> None:
    ids = {await c.ended(value=1), await c.client.submit("echo", value=1, task_id=c.here.led())}
    await c.client.wait(max(ids))
    await c.client.wait(min(ids))
    with c.passing_on(0):  # what has ended waits for nothing, so nobody is asked
        assert ids <= {view.task_id async for view in c.client.list_tasks(state="completed")}
        assert ids <= {view.task_id for view in (await c.client.list_tasks_page(state="completed", limit=1000)).items}


async def send_input(c: Case) -> None:
    task_id = c.there.led()
    await c.client.submit("person", input="well?", task_id=task_id)
    await until(lambda: c.there.plane.engine.cache.tasks[task_id].row.state == "input_required")
    with c.passing_on():
        await c.client.send_input(task_id, {"yes": True})
    assert "true" in str((await c.client.wait(task_id)).result).lower()


async def cancel(c: Case) -> None:
    task_id = await c.waiting()
    with c.passing_on():
        assert (await c.client.cancel(task_id, reason="enough", by="me")).state == "canceled"
    with pytest.raises(TaskEndedError), c.passing_on():
        await c.client.cancel(await c.ended(value=1))


async def pause(c: Case) -> None:
    task_id = await c.waiting()
    with c.passing_on(2):
        assert (await c.client.pause(task_id)).paused
        assert not (await c.client.resume(task_id)).paused
    c.gates(task_id).set()


async def migrate(c: Case) -> None:
    task_id = await c.waiting()
    with c.passing_on(), suppress(OrchestratorError):  # raised where the orchestrator does not know how
        await c.client.migrate(task_id)
    c.gates(task_id).set()


async def retry(c: Case) -> None:
    failed = await c.ended("fail", text="x")
    with c.passing_on():
        made = await c.client.retry(failed)
    assert c.there.plane.leadership.leads(made.task_id)
    named = c.here.led()
    with c.passing_on(0):  # what is made is ours, and the past is read from the store
        assert (await c.client.retry(failed, new_task_id=named)).task_id == named
    key = token_hex(4)
    first, again = [await c.client.retry(failed, idempotency_key=key) for _ in range(2)]
    assert first.task_id == again.task_id


async def replay(c: Case) -> None:
    task_id = await c.ended(value=1)
    with c.passing_on():
        made = await c.client.replay(task_id)
    assert await c.client.result(made.task_id) == 1


async def fork(c: Case) -> None:
    task_id = await c.ended(value=1)
    with c.passing_on():
        made = await c.client.fork(task_id, 1)
    assert await c.client.result(made.task_id) == 1


async def graph(c: Case) -> None:
    task_id = await c.ended(value=1)
    with c.passing_on():
        assert await c.client.graph(task_id) == await c.at_there.graph(task_id)


async def delete_task(c: Case) -> None:
    task_id = await c.ended(value=1)
    with c.passing_on():
        assert (await c.client.delete_task(task_id)).task_id == task_id
    assert task_id not in c.there.plane.engine.cache.tasks
    with pytest.raises(TaskNotFoundError):
        await c.client.get_task(task_id)


async def bulk(c: Case) -> None:
    theirs, ours = [await c.waiting() for _ in range(3)], [c.here.led() for _ in range(2)]
    for task_id in ours:
        await c.client.submit("gate", name=task_id, task_id=task_id)
    meant = f"id:{','.join([*theirs, *ours])}"
    with c.passing_on():  # what the first of them wait for
        assert (await c.client.bulk("pause", meant, dry_run=True)).matched == 5
    for action in ("pause", "resume", "cancel"):
        with c.passing_on():
            answer = await c.client.bulk(action, meant)
        assert {item.task_id: item.problem for item in answer.items} == dict.fromkeys([*theirs, *ours])
    with c.passing_on():
        answer = await c.client.bulk("retry", meant, idempotency_key="k")
    made = [item.new_task_id for item in answer.items]
    assert len(set(made)) == 5
    again = await c.client.bulk("retry", meant, idempotency_key="k")
    assert [item.new_task_id for item in again.items] == made
    await c.client.bulk("cancel", f"id:{','.join(str(one) for one in made)}")
    with c.passing_on():
        answer = await c.client.bulk("delete", meant)
    assert [item.problem for item in answer.items] == [None] * 5
    assert not {*theirs} & c.there.plane.engine.cache.tasks.keys()


async def export(c: Case) -> None:
    task_id = await c.ended(value=1)
    with c.passing_on():
        assert await c.client.export(task_id, c.folder / "one.jsonl") > 100
    with c.passing_on(0):
        assert await c.client.export_all(f"id:{task_id}", c.folder / "all.jsonl") > 100
    await c.client.delete_task(task_id)
    with c.passing_on(0):
        assert [view.task_id for view in await c.client.import_tasks(c.folder / "one.jsonl")] == [task_id]
    with c.passing_on():
        assert await c.client.result(task_id) == 1


async def dead_letters(c: Case) -> None:
    step_id = await c.dead()
    task_id = step_id.partition(":")[0]
    with c.passing_on(0):
        assert [letter.step_id for letter in (await c.client.list_dead(task_id=task_id)).items] == [step_id]
    with c.passing_on():
        assert (await c.client.get_dead(step_id)).letter.step_id == step_id
    with c.passing_on():
        made = await c.client.redrive(step_id)
    assert c.there.plane.leadership.leads(made.task_id)
    with c.passing_on():
        assert (await c.client.redrive(step_id)).task_id == made.task_id
    await c.client.wait(made.task_id)
    with c.passing_on():
        await c.client.purge(step_id)
    with pytest.raises(DeadLetterNotFoundError):
        await c.client.get_dead(step_id)
    await c.client.purge_all(service="fail")
    one = await c.dead()
    with c.passing_on():
        assert (await c.client.redrive_task(one.partition(":")[0])).task_id != one.partition(":")[0]
    two = await c.dead()
    with c.passing_on():
        answer = await c.client.bulk("redrive", f"id:{two.partition(':')[0]}")
    assert [(item.problem, item.new_task_id is None) for item in answer.items] == [(None, False)]
    await until(lambda: c.there.plane.engine.cache.unfinished == 0)
    await c.client.purge_all(service="fail")
    both = {await c.dead(), await c.dead()}
    with c.passing_on():
        answer = await c.client.redrive_all(service="fail")
    assert {item.step_id: item.problem for item in answer.items} == dict.fromkeys(both)
    for item in answer.items:
        await c.client.wait(item.task_id)
    with c.passing_on(0):
        assert (await c.client.purge_all(service="fail")).matched == 4


async def sessions(c: Case) -> None:
    session_id = c.there.led()
    with c.passing_on():
        assert (await c.client.create_session(session_id)).session_id == session_id
    with c.passing_on(0):
        own = (await c.client.create_session()).session_id
    assert c.here.plane.leadership.leads(own)
    await c.client.run("echo", value=1, session_id=session_id)
    with c.passing_on():
        assert (await c.client.get_session(session_id)).task_count == 1
    with c.passing_on(3):
        assert f"result_{session_id}" not in await c.client.get_session_state(session_id)
        assert await c.client.get_session_memory(session_id) == {}
        assert await c.client.clear_session_memory(session_id) == []
    with c.passing_on(0):
        assert {session_id, own} <= {session.session_id async for session in c.client.list_sessions()}
        assert session_id in {s.session_id for s in (await c.client.list_sessions_page(limit=1000)).items}


async def erase_session(c: Case) -> None:
    session_id = await c.session()
    with c.passing_on():
        assert (await c.client.erase_session(session_id, dry_run=True)).tasks == 1
    with c.passing_on():
        assert (await c.client.erase_session(session_id)).erased
    with c.passing_on(0):
        assert session_id in {view.session_id for view in await c.client.list_erasures()}


async def ledger(c: Case) -> None:
    with pytest.raises(LedgerNotFoundError), c.passing_on():
        assert [item async for item in c.client.ledger(await c.ended(value=1))] == []


async def artifacts(c: Case) -> None:
    data = token_hex(1000).encode()
    with c.passing_on(0):
        artifact = await c.client.upload(data, name="a.txt")
        assert await c.client.read(artifact) == data
        assert b"".join([chunk async for chunk in c.client.chunks(artifact)]) == data
        assert (await c.client.download(artifact, c.folder / "a.txt")).read_bytes() == data
    with c.passing_on():
        back = await c.client.run("echo", value=artifact, task_id=c.there.led(), output_type=Artifact)
    assert back.hash == artifact.hash


async def schedules(c: Case) -> None:
    at_leader = c.here.plane.leadership.leads(c.here.plane.routing.of_all)
    with c.passing_on(0 if at_leader else 6):
        name = f"nightly-{token_hex(2)}"
        made = await c.client.put_schedule(name, {"cron": "0 3 * * *", "service": "echo", "input": {"value": 5}})
        assert made.name == name
        assert (await c.client.get_schedule(name)).schedule == made.schedule
        assert name in {view.name for view in await c.client.list_schedules()}
        assert (await c.client.pause_schedule(name)).paused
        assert not (await c.client.resume_schedule(name)).paused
        assert len(await c.client.next_times(name, count=3)) == 3
    made_tasks = [await c.client.trigger_schedule(name) for _ in range(6)]  # their ids are anybody's
    assert [await c.client.result(task_id) for task_id in made_tasks] == [5] * 6
    assert len(set(made_tasks)) == 6
    with c.passing_on(0 if at_leader else 1):
        assert (await c.client.delete_schedule(name)).submitted == 6


async def services(c: Case) -> None:
    with c.passing_on(8):  # one each
        (echo,) = [v for v in await c.client.list_services() if v.definition.service_name == "echo"]
        assert {instance.instance_id for instance in echo.instances} == {"of-a", "of-b"}
        assert (await c.client.list_services_page()).missing == []
        assert len((await c.client.get_service("echo")).instances) == 2
        assert "echo" in {queue.name for queue in await c.client.list_queues()}
        assert (await c.client.list_queues_page()).missing == []
        assert (await c.client.get_queue("echo")).instances == 2
        assert [step async for step in c.client.list_waiting("echo")] == []
        assert (await c.client.list_waiting_page("echo")).items == []
    with c.passing_on(0):
        assert (await c.client.get_queue("echo", control_plane="a")).instances == 1


async def releases(c: Case) -> None:
    """One control plane is asked for all of them, and the others know soon after what it was told."""
    first, second = f"1-{token_hex(2)}", f"2-{token_hex(2)}"
    topics = [plane.engine.releases.topics for plane in (c.here.plane, c.there.plane)]
    await c.client.use_release(first)
    view = await c.client.use_release(second, finish_within_s=60)
    assert [one.release for one in view.items][-2:] == [first, second]
    assert (await c.client.list_releases()).current == second
    await until(lambda: all(known("echo")[-2:] == [f"echo/{first}", f"echo/{second}"] for known in topics))
    assert first not in {one.release for one in (await c.client.retire_release(first)).items}
    await until(lambda: all(f"echo/{first}" not in known("echo") for known in topics))
    task_id = await c.client.submit("echo", value=1, task_id=c.there.led())
    assert await c.client.result(task_id) == 1
    history = [entry async for entry in c.at_there.history(task_id)]
    assert history[0].release == second


async def status(c: Case) -> None:
    before = sum((await c.client.status())["tasks"].values())
    await c.ended(value=1)
    with c.passing_on():
        assert sum((await c.client.status())["tasks"].values()) == before + 1
    with c.passing_on(0):
        assert await c.client.health()


async def logs(c: Case) -> None:
    """Each control plane tells what it has printed itself; here it is part of a program, which keeps that."""
    with c.passing_on(0), pytest.raises(NotOfferedError):
        [line async for line in c.client.logs()]


async def changes_of_services(c: Case) -> None:
    """What operators change about a service holds at every control plane that the answer does not name as missing."""
    views = c.there.plane.views
    with c.passing_on():
        assert (await c.client.pause_service("echo", reason="now")).missing == []
    assert views.service("echo").state == "paused"
    task_id = await c.client.submit("echo", value=1, task_id=c.there.led())
    assert (await c.client.get_task(task_id)).ended_at is None
    await c.client.resume_service("echo")
    assert views.service("echo").state == "up"
    assert await c.client.result(task_id) == 1
    await c.client.set_limits("echo", {"running_max": 7})
    assert "running_max=7" in repr(views.service("echo"))
    await c.client.reset_limits("echo")
    assert "running_max=7" not in repr(views.service("echo"))


async def drain_instance(c: Case) -> None:
    for instance in (await c.client.get_service("tell")).instances:
        with pytest.raises(LlamaDeployError, match="own process"), c.passing_on():
            await c.client.drain_instance("tell", instance.instance_id)


async def backup(c: Case) -> None:
    with c.passing_on(0):
        assert await c.client.backup(c.folder / "backup.db") > 1000


CASES: dict[Callable[[Case], Awaitable[None]], set[str]] = {
    run: set(),
    submit: set(),
    submit_many: set(),
    wait: set(),
    result: set(),
    stream: set(),
    history: set(),
    get_task: set(),
    list_tasks: {"list_tasks_page"},
    send_input: set(),
    cancel: set(),
    pause: {"resume"},
    migrate: set(),
    retry: set(),
    replay: set(),
    fork: set(),
    graph: set(),
    delete_task: set(),
    bulk: set(),
    export: {"export_all", "import_tasks"},
    dead_letters: {"list_dead", "get_dead", "redrive", "redrive_task", "redrive_all", "purge", "purge_all"},
    sessions: {
        "create_session", "get_session", "get_session_state", "get_session_memory", "clear_session_memory",
        "list_sessions", "list_sessions_page",
    },
    erase_session: {"list_erasures"},
    ledger: set(),
    artifacts: {"upload", "read", "chunks", "download"},
    schedules: {
        "put_schedule", "get_schedule", "list_schedules", "pause_schedule", "resume_schedule", "next_times",
        "trigger_schedule", "delete_schedule",
    },
    services: {
        "list_services", "list_services_page", "get_service", "list_queues", "list_queues_page", "get_queue",
        "list_waiting", "list_waiting_page",
    },
    status: {"health"},
    logs: set(),
    changes_of_services: {"pause_service", "resume_service", "set_limits", "reset_limits"},
    drain_instance: set(),
    backup: set(),
    releases: {"list_releases", "use_release", "retire_release"},
}  # fmt: skip
"""Each case, and the methods that it asks beside the one of its name."""
NOT_ASKED = {"close", "core", "apiserver", "sync"}
"""They ask nothing, or through other methods."""


@pytest.mark.parametrize("kind", [Client, SyncClient])
def test_every_method_has_its_case(kind: type) -> None:
    names = {name for name in dir(kind) if not name.startswith("_")}
    methods = {name for name in names if not isinstance(getattr(kind, name), property)} - NOT_ASKED
    asked = {case.__name__ for case in CASES} | set().union(*CASES.values())
    assert methods - asked == set(), "a method of the client that no case asks at a control plane that does not lead"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_any_control_plane_answers_any_request(kind: str, store_url: str, tmp_path: Path) -> None:
    async with served_planes(store_url, "a", "b") as made:
        here, there = made["a"], made["b"]
        async with (
            Client(there.url, timeout_s=DEADLINE_S) as at_there,
            Client(here.url, timeout_s=DEADLINE_S) as client,
        ):
            blocking = SyncClient(here.url, timeout_s=DEADLINE_S)
            try:
                asking: Any = client if kind == "async" else Blocking(blocking)
                failed = []
                for case in CASES:
                    folder = tmp_path / case.__name__
                    folder.mkdir()
                    try:
                        async with asyncio.timeout(DEADLINE_S):
                            await case(Case(asking, here, there, at_there, folder, made.gate))
                    except Exception as error:  # noqa: BLE001 - the other cases have their turn, too
                        error.add_note(f"in the case of `{case.__name__}`")
                        failed.append(error)
                if failed:
                    raise ExceptionGroup(f"{len(failed)} of {len(CASES)} cases", failed)
            finally:
                await asyncio.to_thread(blocking.close)
