"""The DBOS client. Its library finds results by polling: every 10 ms here, every second by default."""

from __future__ import annotations

import asyncio
import os

import uvloop
from dbos import DBOSClient
from sqlalchemy.exc import DBAPIError

from benchmarks import load
from benchmarks.load import Figures, Load
from benchmarks.peers.dbos.app import POLL_S, QUEUE

READY_WITHIN_S = 60


class Caller:
    """One connected client."""

    def __init__(self) -> None:
        self._client = DBOSClient(system_database_url=os.environ["BENCH_BROKER"])

    async def ready(self) -> Caller:
        """Wait until the worker has made its tables."""
        async with asyncio.timeout(READY_WITHIN_S):
            while True:
                try:
                    await self.echo("ready?")
                except DBAPIError:
                    await asyncio.sleep(POLL_S)
                else:
                    return self

    async def submit(self, workflow: str, text: str):
        options = {"workflow_name": workflow, "queue_name": QUEUE, "app_version": "1"}
        return await self._client.enqueue_async(options, text)

    async def collect(self, handle) -> object:
        return await handle.get_result(polling_interval_sec=POLL_S)

    async def echo(self, text: str) -> object:
        return await self.collect(await self.submit("echo", text))

    async def two_hop(self, text: str) -> object:
        return await self.collect(await self.submit("two_hop", text))

    async def scatter(self, steps: int) -> int:
        handles = await asyncio.gather(*(self.submit("echo", f"step {index}") for index in range(steps)))
        return len(await asyncio.gather(*(self.collect(handle) for handle in handles)))


async def run_echo(wanted: Load) -> Figures:
    return await load.echo((await Caller().ready()).echo, str.upper, wanted)


async def run_two_hop(wanted: Load) -> Figures:
    return await load.echo((await Caller().ready()).two_hop, lambda text: text.upper() + "!", wanted)


async def run_fan_out(wanted: Load) -> Figures:
    return await load.fan_out((await Caller().ready()).scatter, wanted)


if __name__ == "__main__":
    load.main({"echo": run_echo, "two_hop": run_two_hop, "fan_out": run_fan_out}, runner=uvloop.run)
