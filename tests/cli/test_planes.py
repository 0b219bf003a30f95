"""The command line over several control planes: all of them in one table, one alone, and who does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from secrets import token_hex

import pytest
from tests.cli.conftest import Llamactl, Ran
from tests.control_plane.served_planes import SETTINGS, served_planes
from tests.support.postgres import database_url

from llama_deploy.client import Client


@pytest.fixture
def store_url() -> Iterator[str]:
    with database_url() as url:
        yield f"{url}?schema=s_{token_hex(4)}"


@pytest.mark.slow
async def test_commands_show_all_control_planes_or_one(store_url: str, llamactl: Llamactl) -> None:
    steady = replace(SETTINGS, shard_lease_s=600.0, peer_answer_s=60.0)
    async with served_planes(store_url, "a", "b", settings=steady) as made:
        here, there = made["a"], made["b"]

        async def run(*args: str) -> Ran:
            return await asyncio.to_thread(llamactl, "-s", here.url, *args)

        async with Client(here.url) as client:
            await client.pause_service("echo")
            for served in (here, here, there):
                await client.submit("echo", value=1, task_id=served.led())
        waits = {}
        for name in ("", "a", "b"):
            ran = await run("queues", "list", "-o", "json", *(("--control-plane", name) if name else ()))
            waits[name] = {item["name"]: item["waiting"] for item in ran.json["items"]}["echo"]
        assert waits == {"": 3, "a": 2, "b": 1}
        ran = await run("queues", "peek", "echo", "-o", "wide")
        assert [line.split()[-1] for line in ran.out.splitlines()[1:]] == ["a", "b", "a"]
        (echo,) = [s for s in (await run("services", "list", "-o", "json")).json["items"] if s["name"] == "echo"]
        assert [one["control_planes"] for one in echo["instances"]] == [["a"], ["b"]]
        ran = await run("status")
        assert f"{there.url}: 32 shards" in ran.out
        assert ran.out.count("unfinished") == 2
        assert "does not answer" not in ran.err
        refused = await run("services", "get", "echo", "--control-plane", "c")
        assert (refused.code, "no control plane 'c'" in refused.err) == (2, True)

        there.cut_off()
        for command in (("queues", "list"), ("queues", "peek", "echo"), ("services", "list"), ("status",)):
            ran = await run(*command)
            assert ran.code == 0
            assert f"The control plane b at {there.url} does not answer" in ran.err, command
        ran = await run("services", "list", "-o", "json")
        assert [one["name"] for one in ran.json["missing"]] == ["b"]
        alone = await run("status", "--control-plane", "b")
        assert (alone.code, "LD333" in alone.err) == (3, True)
