"""A client of a run as a program: `client_program.py CONFIGURATION`, the JSON of a `Share`.

It does its share of the tasks, each when its time has come, and writes what it was told of each to a file, line by
line. Started again after a kill, it does what the file does not tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop
from tests.chaos.kind import Plan, Told
from tests.chaos.kinds import KINDS, plan_of

from llama_deploy.client import Client

AT_ONCE_MAX = 400
"""Tasks of one client at the same time; what is due beyond that waits, and costs no memory."""


class Share(msgspec.Struct, frozen=True):
    """Which tasks one client of several does, and when."""

    url: str
    told: str
    """Path of the file."""
    seed: int
    tasks: int
    """Of all clients together."""
    index: int
    clients: int
    begin_at: float
    """Seconds since the epoch."""
    duration_s: float
    """The tasks are spread over this time."""
    webhook: str
    """Where the end of tasks may be told."""


def read_told(path: Path) -> list[Told]:
    """What a client has written; a line that a kill has torn is none."""
    found: list[Told] = []
    if not path.exists():
        return found
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(line, type=Told))
    return found


async def do(share: Share, done: set[int], tell: Callable[[Told], object]) -> None:
    """Do what is not done of a share."""
    limit = asyncio.Semaphore(AT_ONCE_MAX)
    async with Client(share.url, timeout_s=math.inf) as client:  # whether it still moves is the driver's to see

        async def one(plan: Plan) -> None:
            try:
                told = await KINDS[plan.kind].do(client, plan)
            finally:
                limit.release()
            told.at = time.time()
            tell(told)

        async with asyncio.TaskGroup() as group:
            for number in range(share.index, share.tasks, share.clients):
                if number not in done:
                    due_s = share.begin_at + share.duration_s * number / share.tasks - time.time()
                    if due_s > 0:
                        await asyncio.sleep(due_s)
                    await limit.acquire()
                    group.create_task(one(msgspec.structs.replace(plan_of(share.seed, number), webhook=share.webhook)))


def main(share: Share) -> None:
    path = Path(share.told)
    done = {told.number for told in read_told(path)}
    with path.open("ab", buffering=0) as file:
        if path.stat().st_size:
            file.write(b"\n")  # after a torn line
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(do(share, done, lambda told: file.write(msgspec.json.encode(told) + b"\n")))


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Share))
