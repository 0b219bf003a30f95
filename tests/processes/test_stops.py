"""Clean ends and impossible starts: SIGTERM, Ctrl-C, a port or a store that cannot be had."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from tests.processes.children import Child, System
from tests.support import PROCESS_S, eventually

pytestmark = pytest.mark.slow


async def some_effects(system: System, count: int) -> None:
    await eventually(lambda: sum(system.effects().values()) >= count, PROCESS_S)


async def test_the_control_plane_stops_cleanly_under_load(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    system.settings["recovery_grace_s"] = 2.0
    instance, *_ = await system.start(instances=1)
    async with system.client() as client:
        ids = [f"t{n}" for n in range(300)]
        waiting = asyncio.gather(*(client.run("double", number=n, seconds=0.02, task_id=i) for n, i in enumerate(ids)))
        await some_effects(system, 60)
        began = time.monotonic()
        assert await system.plane.terminate() == 0
        record_property("stop_s", time.monotonic() - began)
        assert system.plane.said() == ""
        await system.start_plane()
        assert await waiting == [n * 2 for n in range(300)]
        await system.check(client, ids)
        assert set(system.effects().values()) == {1}, "nothing ran twice: the instance kept what it held"
        assert instance.process.returncode is None


async def test_nobody_who_submits_notices_a_restart(system: System) -> None:
    await system.start(instances=1)
    async with system.client() as client:
        stop = asyncio.Event()
        ids: list[str] = []

        async def keep_submitting(name: str) -> None:
            number = 0
            while not stop.is_set():
                task_id = f"{name}-{number}"
                ids.append(task_id)
                assert await client.run("double", number=number, task_id=task_id) == number * 2
                number += 1

        submitting = asyncio.gather(*(keep_submitting(f"c{n}") for n in range(8)))
        await eventually(lambda: len(ids) > 100, PROCESS_S)
        assert await system.plane.terminate() == 0
        await system.start_plane()
        restarted_at = len(ids)
        await eventually(lambda: len(ids) > restarted_at + 100, PROCESS_S)
        stop.set()
        await submitting
        await system.check(client, ids)


async def test_a_stop_does_not_wait_for_who_waits(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    await system.start(instances=1)
    async with (
        system.client() as client,
        httpx2.AsyncClient(base_url=system.url, timeout=PROCESS_S, verify=False) as http,
    ):
        await client.submit("gate", folder=str(system.folder), task_id="g")
        await some_effects(system, 1)
        long_wait = asyncio.ensure_future(http.get("/v1/tasks/g/result?wait_s=3600"))
        stream = asyncio.ensure_future(http.get("/v1/tasks/g/stream", headers={"accept": "text/event-stream"}))
        lines = asyncio.ensure_future(http.get("/v1/tasks/g/history?follow=true"))
        await http.get("/v1/tasks")  # the requests before this one have arrived
        began = time.monotonic()
        assert await system.plane.terminate() == 0
        record_property("stop_s", time.monotonic() - began)
        assert system.plane.said() == ""
        answers = await asyncio.gather(long_wait, stream, lines, return_exceptions=True)
        # Whoever was waiting can tell that this was not the end of the task.
        assert isinstance(answers[0], httpx2.Response), answers
        assert answers[0].status_code == 200
        assert answers[0].json()["result"] is None
        assert all(isinstance(answer, httpx2.TransportError) for answer in answers[1:]), answers


async def test_ctrl_c_stops_both_cleanly(system: System) -> None:
    instance, *_ = await system.start(instances=1)
    for child in (system.plane, instance):
        child.signal(signal.SIGINT)
        assert await child.ended() == 0
    assert system.plane.said() == ""


async def test_an_instance_finishes_what_it_holds(system: System) -> None:
    first, *_ = await system.start(instances=1)
    async with system.client() as client:
        waiting = asyncio.ensure_future(client.run("gate", folder=str(system.folder), task_id="g"))
        await some_effects(system, 1)
        first.signal(signal.SIGTERM)
        await eventually(lambda: _draining(system), PROCESS_S)
        second = await system.start_instance()
        await system.instances_are(client, 2)
        assert await client.run("double", number=4, task_id="meanwhile") == 8
        (system.folder / "open").touch()
        assert await waiting == "went through"
        assert await first.ended() == 0
        assert "Traceback" not in first.said()
        pids = dict(line.split()[::2] for line in system.sink.read_text().splitlines())
        assert pids == {"g:1": str(first.process.pid), "meanwhile:1": str(second.process.pid)}
        await system.check(client, ["g", "meanwhile"])


async def _draining(system: System) -> bool:
    async with system.client() as client:
        return (await client.get_service("gate")).state == "draining"


async def test_an_instance_without_a_control_plane_stops_too(system: System) -> None:
    await system.start_plane()
    instance = await system.start_instance()
    async with system.client() as client:
        await system.instances_are(client, 1)
        await client.submit("gate", folder=str(system.folder), task_id="g")
        await some_effects(system, 1)
    await system.plane.kill()
    await eventually(lambda: "cannot reach the control plane" in instance.said(), PROCESS_S)
    assert await instance.terminate() == 4, "what it held was not finished"
    await system.start_plane()
    await system.start_instance()
    (system.folder / "open").touch()
    async with system.client() as client:
        assert await client.result("g") == "went through"


async def test_an_instance_that_never_found_a_control_plane_stops_at_once(system: System) -> None:
    instance = await system.start_instance()
    await eventually(lambda: "cannot reach the control plane" in instance.said(), PROCESS_S)
    assert await instance.terminate() == 0


async def test_a_port_or_a_store_in_use_is_said_and_left_alone(system: System, tmp_path: Path) -> None:
    await system.start(instances=1)
    same_port, same_store = System(tmp_path / "other", system.port), System(tmp_path, 0)
    same_port.folder.mkdir()
    refused = await same_port.start_plane()
    assert await refused.ended() == 1
    assert f"Error LD103: port {system.port} on 127.0.0.1 cannot be used" in refused.said()
    assert "address already in use" in refused.said().lower()
    assert "Fix:" in refused.said()
    assert not same_port.store.exists(), "nothing was begun"
    refused = await same_store.start_plane()
    assert await refused.ended() == 1
    assert "Error LD402" in refused.said()
    assert f"(pid {system.plane.process.pid})" in refused.said()
    async with system.client() as client:
        assert await client.run("double", number=3) == 6


async def test_a_store_without_a_writable_folder_is_said(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("not a folder")
    arguments = ("0", str(place / "store.db"), "{}")
    child = await Child.start("control_plane_program.py", *arguments, folder=tmp_path)
    assert await child.ended() == 1
    assert "Error LD403" in child.said()
    assert str(place / "store.db") in child.said()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_store_in_a_folder_of_another_is_said(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    child = await Child.start("control_plane_program.py", "0", str(closed / "store.db"), "{}", folder=tmp_path)
    assert await child.ended() == 1
    assert "Error LD403" in child.said()
