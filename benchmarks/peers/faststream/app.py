"""FastStream on bare NATS: request and reply, nothing stored anywhere. The second hop is a request of the first
handler.
"""

from __future__ import annotations

import asyncio
import os

import uvloop
from faststream import FastStream
from faststream.nats import NatsBroker

broker = NatsBroker(os.environ["BENCH_BROKER"])
application = FastStream(broker)


@broker.subscriber("echo", max_workers=64)
async def echo(text: str) -> str:
    return text.upper()


@broker.subscriber("exclaim", max_workers=64)
async def exclaim(text: str) -> str:
    return text + "!"


@broker.subscriber("two_hop", max_workers=64)
async def two_hop(text: str) -> str:
    reply = await broker.request(text.upper(), "exclaim", timeout=30)
    return await reply.decode()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(application.run())
