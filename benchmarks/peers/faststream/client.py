"""The FastStream client: `request` publishes and waits for the reply."""

from __future__ import annotations

import asyncio
import os

import uvloop
from faststream.nats import NatsBroker
from nats.errors import NoRespondersError

from benchmarks import load
from benchmarks.load import Figures, Load

TIMEOUT_S = 30
broker = NatsBroker(os.environ["BENCH_BROKER"])


async def ask(subject: str, text: str) -> object:
    reply = await broker.request(text, subject, timeout=TIMEOUT_S)
    return await reply.decode()


async def call_echo(text: str) -> object:
    return await ask("echo", text)


async def call_two_hop(text: str) -> object:
    return await ask("two_hop", text)


async def scatter(steps: int) -> int:
    return len(await asyncio.gather(*(call_echo(f"step {index}") for index in range(steps))))


async def until_served() -> None:
    while True:
        try:
            await call_two_hop("ready")
        except NoRespondersError:
            await asyncio.sleep(0.05)
        else:
            return


def connected(job):
    async def run(wanted: Load) -> Figures:
        async with broker:
            await broker.start()
            await asyncio.wait_for(until_served(), TIMEOUT_S)
            return await job(wanted)

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
