"""An instance with services as a program: `service_program.py URL SINK`.

Every step appends one line to the file SINK, so that a test can count effects: the step's id, its attempt, its process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import uvloop
from tests.support import eventually

from llama_deploy.runtime.failpoints import arm_from_environment
from llama_deploy.services import HumanService, ServiceContext, serve_services, service
from llama_deploy.types import RetryPolicy

SINK = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def effect(context: ServiceContext) -> None:
    """What happens outside at each attempt; one `write` to an appended file is never torn."""
    os.write(SINK, f"{context.step_id} {context.attempt} {os.getpid()}\n".encode())


@service(concurrency=16)
async def double(context: ServiceContext, number: int, seconds: float = 0.0) -> int:
    """Twice the number, after a while."""
    effect(context)
    await asyncio.sleep(seconds)
    return number * 2


@service(concurrency=32)
async def gate(context: ServiceContext, folder: str) -> str:
    """Runs until the file `open` is in the folder."""
    effect(context)
    await eventually((Path(folder) / "open").exists, 600)
    return "went through"


@service(concurrency=32)
async def tell(context: ServiceContext, events: int, folder: str) -> int:
    """Streams numbers, slowly enough to be interrupted, and ends once the file `open` is in the folder."""
    effect(context)
    for number in range(events):
        context.stream({"attempt": context.attempt, "number": number})
        await asyncio.sleep(0.005)
    await eventually((Path(folder) / "open").exists, 600)
    return events


@service(concurrency=4)
async def block(context: ServiceContext, seconds: float) -> int:
    """Blocks its event loop, as careless code does."""
    effect(context)
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point
    return context.attempt


@service(concurrency=4, retry=RetryPolicy(max_retries=5, initial_s=0.05))
async def flaky(context: ServiceContext, number: int) -> int:
    """Fails at the first attempt."""
    effect(context)
    if context.attempt == 1:
        raise RuntimeError("not yet")
    return number


@service
async def large(context: ServiceContext, size: int, event: int = 0) -> str:
    """Streams a large event, and returns a large text."""
    effect(context)
    if event:
        context.stream("x" * event)
    return "x" * size


def _unique() -> str:
    return f"{os.getpid()} {time.monotonic_ns()}"


@service(concurrency=4)
async def keep(context: ServiceContext, count: int) -> list[str]:
    """Has values remembered, each of which tells who made it."""
    effect(context)
    return [
        await context.once(f"value {number}", lambda: f"{os.getpid()} {time.monotonic_ns()}") for number in range(count)
    ]


@service(concurrency=1)
async def sum_of(context: ServiceContext, count: int) -> int:
    """Twice the numbers below `count`, added up by others."""
    effect(context)
    calls = [context.call("double", number=number, seconds=0.1, wait_for_service=True) for number in range(count)]
    return sum(await asyncio.gather(*calls))


@service(concurrency=4)
async def calls_gate(context: ServiceContext, folder: str) -> str:
    """Waits for another service that waits."""
    effect(context)
    answer: str = await context.call("gate", folder=folder, wait_for_service=True)
    return answer


@service(concurrency=4)
async def asks(context: ServiceContext, text: str) -> list[str]:
    """Asks a person twice."""
    effect(context)
    return [await context.ask("first"), await context.ask("second")]


@service(concurrency=4)
async def repeat(context: ServiceContext, data: bytes, times: int) -> bytes:
    """A content, several times."""
    effect(context)
    return data * times


PERSON = HumanService("person")


async def main() -> bool:
    arm_from_environment()
    return await serve_services(
        [double, gate, tell, block, flaky, large, keep, sum_of, calls_gate, asks, repeat, PERSON],
        control_plane_url=sys.argv[1],
        drain_timeout_s=20.0,
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(0 if runner.run(main()) else 4)
