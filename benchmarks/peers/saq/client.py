"""The SAQ client. Its library finds results by polling: every 10 ms here, 500 ms by default.

SAQ has no chain, so the client carries the first answer to the second task.
"""

from __future__ import annotations

import uvloop
from saq.queue import JobError

from benchmarks import load
from benchmarks.load import Figures, Load
from benchmarks.peers.saq.app import queue

POLL_S = 0.01
TIMEOUT_S = 60


async def call_echo(text: str) -> object:
    return await queue.apply("echo", timeout=TIMEOUT_S, poll_interval=POLL_S, text=text)


async def call_two_hop(text: str) -> object:
    first = await call_echo(text)
    return await queue.apply("exclaim", timeout=TIMEOUT_S, poll_interval=POLL_S, text=first)


async def scatter(steps: int) -> int:
    inputs = [{"text": f"step {index}"} for index in range(steps)]
    return len(await queue.map("echo", inputs, timeout=TIMEOUT_S, poll_interval=POLL_S))


async def until_served() -> None:
    """A starting worker sweeps away a job that it finds taken, so the first one may fail."""
    while True:
        try:
            await call_echo("ready")
        except JobError:
            continue
        else:
            return


def connected(job):
    async def run(wanted: Load) -> Figures:
        await queue.connect()
        try:
            await until_served()
            return await job(wanted)
        finally:
            await queue.disconnect()

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
