"""Control planes that share a store, as processes: killed, frozen, restarted in turn, with work in flight."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import asyncpg
import pytest
from tests.processes.children import Child
from tests.support import PROCESS_S, eventually
from tests.support.postgres import database_url

from llama_deploy.client import Client
from llama_deploy.errors import LlamaDeployError
from llama_deploy.state_stores.shards import SHARDS, shard_of

pytestmark = pytest.mark.slow

SETTINGS = {"shard_lease_s": 1.5, "heartbeat_s": 0.3, "lease_s": 10.0, "recovery_grace_s": 5.0}
"""Instances have time to come back with what they hold, also on a machine that stands still for a moment."""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


class Cluster:
    """Control planes by name, instances, and the rows that say who leads what."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.database = database
        self.schema = f"s_{token_hex(4)}"
        self.sink = folder / "sink"
        self.planes: dict[str, Child] = {}
        self.urls: dict[str, str] = {}
        self.children: list[Child] = []
        self.clients: dict[str, Client] = {}

    async def start_plane(self, name: str) -> None:
        store = f"{self.database}?schema={self.schema}"
        child = await Child.start(
            "control_plane_program.py", "0", store, json.dumps(SETTINGS), "shared", folder=self.folder
        )
        self.children.append(child)
        self.planes[name] = child
        self.urls[name] = await child.line()
        assert self.urls[name], child.said()
        self.clients[name] = Client(self.urls[name], reconnect_timeout_s=PROCESS_S)

    async def start(self, *, instances: int = 1) -> None:
        """Two control planes, and instances that were told of one of them each."""
        await asyncio.gather(self.start_plane("a"), self.start_plane("b"))
        for name in ("a", "b")[:instances]:
            await self.start_instance(name)
        await self.shared_out("a", "b")
        await self.served("a", "b", instances=instances)

    async def start_instance(self, name: str) -> Child:
        child = await Child.start("service_program.py", self.urls[name], str(self.sink), folder=self.folder)
        self.children.append(child)
        return child

    async def leaders(self) -> dict[int, str]:
        """The URL of who leads each shard, by the rows of the store."""
        connection = await asyncpg.connect(self.database)
        try:
            rows = await connection.fetch(
                f"SELECT shard, url FROM {self.schema}.shards JOIN {self.schema}.owners USING (owner) "
                "WHERE lease_until > clock_timestamp()"
            )
        finally:
            await connection.close()
        return {row[0]: row[1] for row in rows}

    async def shared_out(self, *names: str) -> None:
        """Wait until these lead everything, in equal parts, and all know of it."""
        part = -(-SHARDS // len(names))
        wanted = {self.urls[name] for name in names}

        async def done() -> bool:
            led = Counter((await self.leaders()).values())
            return set(led) == wanted and led.total() == SHARDS and max(led.values()) <= part

        await eventually(done, PROCESS_S)

    async def served(self, *names: str, instances: int = 1) -> None:
        """Wait until instances are connected to these."""
        for name in names:

            async def done(name: str = name) -> bool:
                return bool((await self.clients[name].status())["instances"] == instances)

            await eventually(done, PROCESS_S)

    async def led_by(self, name: str) -> Iterator[str]:
        """Ids of tasks that a control plane leads now."""
        leaders = await self.leaders()
        mine = {shard for shard, url in leaders.items() if url == self.urls[name]}
        token = token_hex(3)
        return (found for n in range(100_000) if shard_of(found := f"t{token}-{n}", SHARDS) in mine)

    def effects(self) -> Counter[str]:
        """How often each step ran, as the sink counted it."""
        return (
            Counter(line.split()[0] for line in self.sink.read_text().splitlines()) if self.sink.exists() else Counter()
        )

    async def outcome(self, client: Client, task_id: str) -> Any:
        """The result of a task, as this control plane says it once it leads it."""

        async def ask() -> Any:
            try:
                return [await client.result(task_id, timeout_s=PROCESS_S)]
            except LlamaDeployError as error:
                if error.code in ("LD409", "LD101", "LD102", "LD401"):
                    return None
                raise

        return (await eventually(ask, PROCESS_S))[0]

    async def stop(self) -> None:
        for client in self.clients.values():
            await client.close()
        for child in self.children:
            if child.process.returncode is None:
                child.signal(signal.SIGCONT)
                await child.kill()


@pytest.fixture
async def cluster(tmp_path: Path, database: str) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, database)
    try:
        yield made
    finally:
        await made.stop()


async def _submit(cluster: Cluster, name: str, many: int, service: str, **arguments: Any) -> list[str]:
    ids = await cluster.led_by(name)
    tasks = [next(ids) for _ in range(many)]
    client = cluster.clients[name]
    await asyncio.gather(
        *[client.submit(service, task_id=task_id, wait_for_service=True, **arguments) for task_id in tasks]
    )
    return tasks


async def test_one_of_two_is_killed_under_load_and_nothing_is_lost_or_done_twice(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.start(instances=2)
    tasks = {}
    for name in ("a", "b"):
        for task_id in await _submit(cluster, name, 150, "double", number=21, seconds=0.05):
            tasks[task_id] = 42
        for task_id in await _submit(cluster, name, 2, "sum_of", count=8):
            tasks[task_id] = sum(2 * number for number in range(8))
    [streamed] = await _submit(cluster, "a", 1, "tell", events=30, folder=str(tmp_path))
    [asked] = await _submit(cluster, "a", 1, "person", text="well?")
    b = cluster.clients["b"]
    waiting = [asyncio.create_task(b.run("double", number=number, seconds=0.3)) for number in range(60)]  # led by both
    await asyncio.sleep(0)
    await cluster.planes["a"].kill()
    await cluster.shared_out("b")
    assert await asyncio.gather(*waiting) == [2 * number for number in range(60)]
    (tmp_path / "open").touch()
    for task_id, wanted in tasks.items():
        assert await cluster.outcome(b, task_id) == wanted
    assert await cluster.outcome(b, streamed) == 30
    events = [event async for event in b.stream(streamed)]
    assert [event.index for event in events] == list(range(len(events)))
    await b.send_input(asked, "fine")
    assert await cluster.outcome(b, asked) == "fine"
    listed = [task async for task in b.list_tasks()]
    assert {task.state.value for task in listed} == {"completed"}
    assert len(listed) == len(tasks) + len(waiting) + 2 + 4 * 8  # with the children
    effects = cluster.effects()
    assert sum(effects.values()) == len(effects)  # instances lived: what they held went on, and ran once


async def test_one_that_stood_still_for_too_long_is_refused_and_comes_back_by_itself(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.start()
    held = [*await _submit(cluster, "a", 4, "gate", folder=str(tmp_path))]
    await eventually(lambda: len(cluster.effects()) == 4, PROCESS_S)
    cluster.planes["a"].signal(signal.SIGSTOP)
    await cluster.shared_out("b")
    (tmp_path / "open").touch()
    for task_id in held:
        assert await cluster.outcome(cluster.clients["b"], task_id) == "went through"
    cluster.planes["a"].signal(signal.SIGCONT)
    await cluster.shared_out("a", "b")
    await cluster.served("a", "b")
    again = await _submit(cluster, "a", 20, "double", number=2)
    for task_id in again:
        assert await cluster.outcome(cluster.clients["a"], task_id) == 4
    assert set(cluster.effects().values()) == {1}
    assert (await cluster.clients["a"].status())["leadership"]["lost"] > 0


async def test_all_are_restarted_one_after_the_other_with_work_in_flight(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.start()
    held = [task for name in ("a", "b") for task in await _submit(cluster, name, 2, "gate", folder=str(tmp_path))]
    waiting = [t for name in ("a", "b") for t in await _submit(cluster, name, 60, "double", number=1, seconds=0.05)]
    assert await cluster.planes["a"].terminate() == 0
    await cluster.shared_out("b")
    await cluster.start_plane("c")
    await cluster.shared_out("b", "c")
    assert await cluster.planes["b"].terminate() == 0
    await cluster.shared_out("c")
    await cluster.served("c")
    assert (await cluster.clients["c"].status())["leadership"]["takeovers"] == 0
    (tmp_path / "open").touch()
    for task_id in held:
        assert await cluster.outcome(cluster.clients["c"], task_id) == "went through"
    for task_id in waiting:
        assert await cluster.outcome(cluster.clients["c"], task_id) == 2
    assert set(cluster.effects().values()) == {1}
