"""The SAQ settings: two functions, Redis as queue and result store."""

from __future__ import annotations

import os

from saq import Queue

queue = Queue.from_url(os.environ["BENCH_BROKER"], name="benchmark", max_concurrent_ops=64)


async def echo(context, *, text: str) -> str:
    return text.upper()


async def exclaim(context, *, text: str) -> str:
    return text + "!"


settings = {"queue": queue, "functions": [echo, exclaim], "concurrency": 100}
