"""An instance of a run as a program: `service_program.py URL SINK`. Every step has one effect, at the sink."""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

import uvloop
from tests.chaos.kinds_of_data import AGAIN
from tests.chaos.sink import Sink

from llama_deploy import Artifact
from llama_deploy.errors import NonRetryableError
from llama_deploy.runtime.logs import configure
from llama_deploy.services import HumanService, ServiceContext, serve_services, service
from llama_deploy.types import RetryPolicy

SINK = Sink(Path(sys.argv[2]))
SOON = RetryPolicy(max_retries=10, initial_s=0.05, cap_s=0.5)


def effect(context: ServiceContext, value: object) -> None:
    SINK.effect(context.step_id, context.service, value)


@service(concurrency=64)
async def work(context: ServiceContext, number: int, seconds: float = 0.0) -> int:
    """Twice the number, after a while."""
    await asyncio.sleep(seconds)
    effect(context, number * 2)
    return number * 2


@service(concurrency=64, retry=SOON)
async def part(context: ServiceContext, number: int) -> int:
    """One more than the number; the first attempt of every seventh fails."""
    if number % 7 == 0 and context.attempt == 1:
        raise RuntimeError("not yet")
    effect(context, number + 1)
    return number + 1


@service(concurrency=64)
async def join(context: ServiceContext, values: list[int]) -> int:
    """The sum."""
    effect(context, sum(values))
    return sum(values)


@service(concurrency=64, retry=SOON)
async def flaky(context: ServiceContext, number: int, failures: int) -> int:
    """Fails that often."""
    if context.attempt <= failures:
        raise RuntimeError("not yet")
    effect(context, number)
    return number


@service(concurrency=64)
async def worn(context: ServiceContext, number: int, failures: int) -> int:
    """Fails that often; how it is tried again is the task's to say."""
    if context.attempt <= failures:
        raise RuntimeError("not yet")
    effect(context, number)
    return number


@service(concurrency=64, retry=SOON)
async def careful(context: ServiceContext, dice: int, failures: int) -> list[str]:
    """Throws dice, with time to die between them."""
    thrown = []
    for number in range(dice):
        thrown.append(await context.once(f"die {number}", lambda: uuid.uuid4().hex))
        await asyncio.sleep(0.05)
    effect(context, thrown)
    if context.attempt <= failures:
        raise RuntimeError("not yet")
    return thrown


@service(concurrency=64, retry=SOON)
async def caller(context: ServiceContext, number: int, calls: int, failures: int) -> int:
    """The sum of what other tasks come to."""
    numbers = range(number, number + calls)
    values = await asyncio.gather(
        *(context.call("work", number=n, seconds=0.05, wait_for_service=True) for n in numbers)
    )
    effect(context, sum(values))
    if context.attempt <= failures:
        raise RuntimeError("not yet")
    return sum(values)


@service(concurrency=64)
async def stuck(context: ServiceContext) -> str:
    """Calls what never ends."""
    effect(context, "")
    await context.call("endless", wait_for_service=True)
    return "never"


@service(concurrency=64)
async def broken(context: ServiceContext, number: int) -> int:
    """Fails for good."""
    effect(context, number)
    raise NonRetryableError(f"never {number}")


@service(concurrency=64)
async def moody(context: ServiceContext, number: int) -> int:
    """Fails for good in the first task, and works in the one that does it again."""
    effect(context, number)
    if not context.task_id.endswith(AGAIN):
        raise NonRetryableError("in a mood")
    return number


@service(concurrency=16)
async def turned(context: ServiceContext, document: Artifact) -> Artifact:
    """The content of a file from its end to its beginning."""
    saved = await context.save((await document.read())[::-1], name="out.bin")
    effect(context, saved.model_dump(mode="json"))
    return saved


@service(concurrency=64)
async def whisper(context: ServiceContext, text: str) -> int:
    """How long a text is that nobody is to keep."""
    effect(context, len(text))
    return len(text)


@service(concurrency=64)
async def tell(context: ServiceContext, events: int, pause_s: float) -> int:
    """Streams numbers."""
    for number in range(events):
        context.stream({"attempt": context.attempt, "number": number})
        await asyncio.sleep(pause_s)
    effect(context, events)
    return events


@service(concurrency=64)
async def asks(context: ServiceContext, questions: int) -> list[str]:
    """Asks a person, in its place."""
    answers = [await context.ask(f"question {number}") for number in range(questions)]
    effect(context, answers)
    return answers


@service(concurrency=256)
async def endless(context: ServiceContext) -> str:
    """Runs until it is canceled."""
    effect(context, "")
    await asyncio.Event().wait()
    return "never"


_PLAIN = [work, part, join, flaky, broken, worn, tell, asks, endless, HumanService("person")]
_RECORDED = [careful, caller, stuck]
_ABOUT_DATA = [moody, turned, whisper]
SERVICES = [*_PLAIN, *_RECORDED, *_ABOUT_DATA]


async def main() -> bool:
    return await serve_services(SERVICES, control_plane_url=sys.argv[1], drain_timeout_s=1.0)


if __name__ == "__main__":
    configure("WARNING")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
