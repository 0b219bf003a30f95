"""The DBOS worker: two workflows of a step each on a queue, everything recorded in PostgreSQL."""

from __future__ import annotations

import os
import threading

from dbos import DBOS

QUEUE = "benchmark"
POLL_S = 0.01


@DBOS.step()
async def upper(text: str) -> str:
    return text.upper()


@DBOS.step()
async def exclaim(text: str) -> str:
    return text + "!"


@DBOS.workflow(name="echo")
async def echo(text: str) -> str:
    return await upper(text)


@DBOS.workflow(name="two_hop")
async def two_hop(text: str) -> str:
    return await exclaim(await upper(text))


def main() -> None:
    """Work until it is stopped."""
    DBOS(
        config={
            "name": "benchmark",
            "application_version": "1",
            "system_database_url": os.environ["BENCH_BROKER"],
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=100, polling_interval_sec=POLL_S)
    threading.Event().wait()


if __name__ == "__main__":
    main()
