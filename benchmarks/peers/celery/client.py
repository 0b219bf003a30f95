"""The Celery client. Its library blocks, so outstanding tasks are a window of handles in one thread."""

from __future__ import annotations

from celery import chain, group

from benchmarks import load
from benchmarks.load import Figures, Load
from benchmarks.peers.celery.app import app, echo, exclaim

TIMEOUT_S = 60


def submit_echo(text: str):
    return echo.delay(text)


def submit_two_hop(text: str):
    return chain(echo.s(text), exclaim.s()).apply_async()


def collect(handle) -> object:
    return handle.get(timeout=TIMEOUT_S)


def job(submit, expected):
    async def call(text: str) -> object:
        return collect(submit(text))

    async def run(wanted: Load) -> Figures:
        for index in range(wanted.warm_up):
            await call(f"warm {index}")
        alone = await load.one_at_a_time(call, expected, wanted)
        return {**alone, **load.outstanding_blocking(submit, collect, expected, wanted)}

    return run


async def fan_out(wanted: Load) -> Figures:
    async def scatter(steps: int) -> int:
        answers = group(echo.s(f"step {index}") for index in range(steps)).apply_async()
        return len(answers.get(timeout=TIMEOUT_S))

    return await load.fan_out(scatter, wanted)


if __name__ == "__main__":
    app.set_current()
    load.main(
        {
            "echo": job(submit_echo, str.upper),
            "two_hop": job(submit_two_hop, lambda text: text.upper() + "!"),
            "fan_out": fan_out,
        }
    )
