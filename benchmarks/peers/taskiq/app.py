"""The Taskiq broker on Redis streams: two tasks, acknowledged when their result is saved."""

from __future__ import annotations

import os

from taskiq_pipelines import PipelineMiddleware
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

url = os.environ["BENCH_BROKER"]
broker = (
    RedisStreamBroker(url=url, queue_name="benchmark")
    .with_result_backend(RedisAsyncResultBackend(redis_url=url, result_ex_time=600))
    .with_middlewares(PipelineMiddleware())
)


@broker.task
async def echo(text: str) -> str:
    return text.upper()


@broker.task
async def exclaim(text: str) -> str:
    return text + "!"
