"""The floor's worker: reads one line of JSON per step, answers with one."""

from __future__ import annotations

import asyncio
import json
import os

import uvloop

SERVICES = {"echo": str.upper, "exclaim": lambda text: text + "!"}


async def main() -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["BENCH_WORKER_PORT"]))
    async for line in reader:
        task_id, service, text = json.loads(line)
        writer.write(json.dumps([task_id, SERVICES[service](text)]).encode() + b"\n")


if __name__ == "__main__":
    uvloop.run(main())
