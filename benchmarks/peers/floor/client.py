"""The floor's client: one HTTP request per task, which waits for the result."""

from __future__ import annotations

import asyncio
import os

import aiohttp
import uvloop

from benchmarks import load
from benchmarks.load import Call, Figures, Load

URL = f"http://127.0.0.1:{os.environ['BENCH_PORT']}/tasks"


def caller(session: aiohttp.ClientSession, name: str) -> Call:
    async def call(text: str) -> object:
        async with session.post(URL, json={"job": name, "text": text}) as response:
            return (await response.json())["result"]

    return call


def connected(job):
    async def run(wanted: Load) -> Figures:
        connector = aiohttp.TCPConnector(limit=max(wanted.width, 64))
        async with aiohttp.ClientSession(connector=connector) as session:
            return await job(session, wanted)

    return run


async def fan_out(session: aiohttp.ClientSession, wanted: Load) -> Figures:
    call = caller(session, "echo")

    async def scatter(steps: int) -> int:
        return len(await asyncio.gather(*(call(f"step {index}") for index in range(steps))))

    return await load.fan_out(scatter, wanted)


async def echo(session: aiohttp.ClientSession, wanted: Load) -> Figures:
    return await load.echo(caller(session, "echo"), str.upper, wanted)


async def two_hop(session: aiohttp.ClientSession, wanted: Load) -> Figures:
    return await load.echo(caller(session, "two_hop"), lambda text: text.upper() + "!", wanted)


if __name__ == "__main__":
    load.main(
        {"echo": connected(echo), "two_hop": connected(two_hop), "fan_out": connected(fan_out)}, runner=uvloop.run
    )
