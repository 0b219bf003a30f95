"""The Celery application: two tasks, Redis as broker and result backend, acknowledgement after the work."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("benchmark", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BROKER"])
app.conf.update(
    task_acks_late=True,
    task_default_queue="benchmark",
    result_expires=600,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "16")),
    broker_connection_retry_on_startup=True,
)


@app.task
def echo(text: str) -> str:
    return text.upper()


@app.task
def exclaim(text: str) -> str:
    return text + "!"
