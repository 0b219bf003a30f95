"""Control planes that die, come and go while clients wait and read at the others."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from tests.control_plane.harness import until
from tests.control_plane.served_planes import SOON, ServedPlane, ServedPlanes, served_planes
from tests.support import DEADLINE_S, eventually

from llama_deploy.client import Client
from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import NoLeaderError


async def numbers(client: Client, task_id: str, seen: list[tuple[int, Any]]) -> None:
    async for event in client.stream(task_id):
        seen.append((event.index, event.data))  # noqa: PERF401 - looked at as it grows


async def entries(client: Client, task_id: str) -> list[int]:
    return [entry.seq async for entry in client.history(task_id, follow=True)]


async def at_work(served: ServedPlane, task_id: str) -> None:
    """Until an instance works on the task."""
    cached = served.plane.engine.cache.tasks
    await until(lambda: task_id in cached and any(step.claimed_by for step in cached[task_id].open.values()))


async def running(made: ServedPlanes, client: Client, leader: ServedPlane) -> str:
    """A task that has streamed 500 of its 1,000 events, and waits for the gate `half`."""
    task_id = leader.led()
    await client.submit("tell", events=1000, gate="half", task_id=task_id)
    await at_work(leader, task_id)
    entry = leader.plane.engine.cache.tasks[task_id]
    await until(lambda: entry.stream is not None and entry.stream.committed >= 500)
    return task_id


@pytest.mark.slow
async def test_a_client_hears_nothing_of_the_death_of_the_leader(store_url: str) -> None:
    async with (
        served_planes(store_url, "a", "b", settings=SOON) as made,
        Client(made["a"].url, timeout_s=DEADLINE_S) as client,
    ):
        task_id = await running(made, client, made["b"])
        seen: list[tuple[int, Any]] = []
        streaming = asyncio.create_task(numbers(client, task_id, seen))
        following = asyncio.create_task(entries(client, task_id))
        waiting = asyncio.create_task(client.result(task_id))
        submitting = [made["b"].led() for _ in range(5)]
        await until(lambda: len(seen) >= 500)

        made["b"].cut_off()
        more = [asyncio.create_task(client.run("echo", value=n, task_id=t)) for n, t in enumerate(submitting)]
        made.gate("half").set()

        assert await waiting == 1000
        await streaming
        assert [index for index, _ in seen] == list(range(len(seen))), "no gap and no repetition in the numbers"
        assert [data for _, data in seen][-1000:] == list(range(1000))
        assert await following == list(range(1, len(await following) + 1))
        assert await asyncio.gather(*more) == list(range(5))
        assert made["a"].plane.leadership.leads(task_id)


@pytest.mark.slow
async def test_a_client_hears_nothing_of_a_session_that_moves(store_url: str) -> None:
    """One more joins and is given shards: what clients of the earlier ones wait for and read goes on there."""
    async with (
        served_planes(store_url, "a", settings=SOON) as made,
        Client(made["a"].url, timeout_s=DEADLINE_S) as client,
    ):
        tasks = [await running(made, client, made["a"]) for _ in range(6)]
        seen: dict[str, list[tuple[int, Any]]] = {task_id: [] for task_id in tasks}
        reading = [asyncio.create_task(numbers(client, task_id, seen[task_id])) for task_id in tasks]
        waiting = [asyncio.create_task(client.result(task_id)) for task_id in tasks]
        await until(lambda: all(len(one) >= 500 for one in seen.values()))
        await made.start("b")
        await made.shared_out()
        moved = [task_id for task_id in tasks if made["b"].plane.leadership.leads(task_id)]
        made.gate("half").set()
        assert await asyncio.gather(*waiting) == [1000] * 6
        await asyncio.gather(*reading)
        for one in seen.values():
            assert [index for index, _ in one] == list(range(len(one)))
            assert [data for _, data in one][-1000:] == list(range(1000))
        assert client._connection._outage is None
        assert made["a"].passed_on >= 2 * len(moved)
        await made.stop_one("b")
        assert await client.result(tasks[0]) == 1000


@pytest.mark.slow
async def test_a_client_of_three_goes_on_while_each_of_them_is_restarted(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", "c", settings=SOON) as made:
        urls = [served.url for served in made.planes.values()]
        ports = {name: served.proxy.port for name, served in made.planes.items()}
        async with Client(urls, timeout_s=DEADLINE_S, reconnect_timeout_s=DEADLINE_S) as client:
            waits = asyncio.create_task(client.run("gate", name="end"))
            done: list[int] = []

            async def work() -> None:
                while not made.gate("end").is_set():
                    done.append(await client.run("echo", value=len(done)))

            def more_than(count: int) -> bool:
                return len(done) > count

            working = asyncio.create_task(work())
            for name in ("a", "b", "c"):
                await until(partial(more_than, len(done) + 5))
                await made.stop_one(name)
                await made.shared_out()
                await until(partial(more_than, len(done) + 5))
                await made.start(name, port=ports[name])
                await made.shared_out()
            made.gate("end").set()
            assert await waits == "through end"
            await working
            assert done == list(range(len(done)))


@pytest.mark.slow
async def test_a_request_waits_for_a_leader_and_is_refused_in_the_end(store_url: str) -> None:
    impatient = EngineSettings(recovery_grace_s=0.2, leader_wait_s=0.3, shard_lease_s=60.0)
    async with served_planes(store_url, "a", "b", settings=impatient) as made:
        task_id = made["b"].led()
        made["b"].cut_off()  # its lease goes on for a minute
        async with httpx2.AsyncClient(base_url=made["a"].url, timeout=DEADLINE_S) as http:
            submission = {"service": "echo", "input": {"value": 1}, "task_id": task_id}
            for method, path, body in (("POST", "/v1/tasks", submission), ("GET", f"/v1/sessions/{task_id}", None)):
                answer = await http.request(method, path, json=body)
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "2"
                assert answer.json()["code"] == NoLeaderError.code
            ours = {"service": "echo", "input": {"value": 1}}
            assert (await http.post("/v1/tasks?wait_s=60", json=ours)).json()["state"] == "completed"


@pytest.mark.slow
async def test_what_waits_over_http_goes_on_at_the_next_leader_and_a_stream_breaks_off(store_url: str) -> None:
    async with (
        served_planes(store_url, "a", "b", settings=SOON) as made,
        Client(made["a"].url) as client,
        httpx2.AsyncClient(base_url=made["a"].url, timeout=DEADLINE_S) as http,
    ):
        task_id = await running(made, client, made["b"])
        waiting = asyncio.create_task(_get(http, f"/v1/tasks/{task_id}/result?wait_s=60"))
        lines: dict[str, list[str]] = {"stream": [], "history?follow=true": []}
        reading = [asyncio.create_task(_read(http, f"/v1/tasks/{task_id}/{path}", lines[path])) for path in lines]
        await until(lambda: len(lines["stream"]) == 500 and lines["history?follow=true"] != [])
        await until(lambda: made["b"].plane.engine.cache.tasks[task_id].ended_callbacks != [])
        made["b"].cut_off()
        submitted = await http.post(
            "/v1/tasks?wait_s=60", json={"service": "echo", "input": {"value": 1}, "task_id": made["b"].led()}
        )
        assert (submitted.status_code, submitted.json()["state"]) == (201, "completed")
        made.gate("half").set()
        answer = await waiting
        assert (answer["state"], answer["result"]["result"]) == ("completed", "1000")
        ends = await asyncio.gather(*reading, return_exceptions=True)
        assert [type(end) for end in ends] == [httpx2.RemoteProtocolError] * 2, "it does not look complete"


async def _get(http: httpx2.AsyncClient, path: str) -> Any:
    return (await http.get(path)).json()


async def _read(http: httpx2.AsyncClient, path: str, lines: list[str]) -> None:
    async with http.stream("GET", path) as answer:
        async for line in answer.aiter_lines():
            lines.append(line)  # noqa: PERF401 - looked at as it grows


@pytest.mark.slow
async def test_schedules_go_on_with_the_next_leader_and_miss_no_time(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", settings=SOON) as made:
        leader = next(served for served in made.planes.values() if served.plane.leadership.first)
        other = next(served for served in made.planes.values() if served is not leader)
        async with Client(other.url) as client:
            await client.put_schedule("often", {"every_s": 1, "service": "echo", "input": {"value": 1}})
            assert [view.name for view in await other.plane.schedules.list()] == ["often"], "read where it is not led"
            assert not other.plane.schedules.in_charge

            async def times() -> list[str]:
                return [view.task_id async for view in client.list_tasks(filter="origin:schedule:*")]

            async def submitted(count: int) -> bool:
                return len(await times()) >= count

            await eventually(partial(submitted, 2))
            leader.cut_off()
            await until(lambda: other.plane.leadership.first)
            await eventually(partial(submitted, 5))
            seconds = sorted(task_id.partition("@")[2] for task_id in await times())
            assert len(set(seconds)) == len(seconds)
            at = [datetime.fromisoformat(second) for second in seconds]
            assert [(after - before).total_seconds() for before, after in pairwise(at)] == [1.0] * (len(at) - 1)
            assert (await client.get_schedule("often")).submitted >= len(seconds)
            await client.delete_schedule("often")
            assert [await client.result(f"often@{second}") for second in seconds] == [1] * len(seconds)
