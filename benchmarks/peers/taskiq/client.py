"""The Taskiq client. Its library finds results by polling: every 10 ms here, 200 ms by default."""

from __future__ import annotations

import asyncio

import uvloop
from taskiq_pipelines import Pipeline

from benchmarks import load
from benchmarks.load import Figures, Load
from benchmarks.peers.taskiq.app import broker, echo, exclaim

POLL_S = 0.01
TIMEOUT_S = 60


async def collect(handle) -> object:
    return (await handle.wait_result(check_interval=POLL_S, timeout=TIMEOUT_S)).return_value


async def call_echo(text: str) -> object:
    return await collect(await echo.kiq(text))


async def call_two_hop(text: str) -> object:
    return await collect(await Pipeline(broker, echo).call_next(exclaim).kiq(text))


async def scatter(steps: int) -> int:
    handles = await asyncio.gather(*(echo.kiq(f"step {index}") for index in range(steps)))
    return len(await asyncio.gather(*(collect(handle) for handle in handles)))


def connected(job):
    async def run(wanted: Load) -> Figures:
        await broker.startup()
        try:
            return await job(wanted)
        finally:
            await broker.shutdown()

    return run


if __name__ == "__main__":
    load.main(
        {
            "echo": connected(lambda wanted: load.echo(call_echo, str.upper, wanted)),
            "two_hop": connected(lambda wanted: load.echo(call_two_hop, lambda text: text.upper() + "!", wanted)),
            "fan_out": connected(lambda wanted: load.fan_out(scatter, wanted)),
        },
        runner=uvloop.run,
    )
