"""Abuse of both kinds of connection, frame by frame: nothing raises, nothing hangs, and no task of others is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from tests.control_plane.frame_abuse import SERVICE, TASKS, conversations, greeting
from tests.control_plane.harness import LinkedRunner, World, history, stream, submit, world

from llama_deploy.control_plane import ControlPlane
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages.frames import (
    Answer,
    ClientOp,
    InstanceOp,
    decode_client_frame,
    decode_instance_frame,
    decode_reply_frame,
    encode_frame,
)
from llama_deploy.services import service
from llama_deploy.testing import ManualClock

pytestmark = pytest.mark.slow

thorough = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
STEP_S = 700.0
"""Longer than any pause or deadline of the control plane: each step of time makes whatever waits go on."""


@service(concurrency=100, name=SERVICE)
async def echo(text: str) -> str:
    """The text."""
    return text


class _Errors(logging.Handler):
    """Errors that were logged: work beside the flow that raised."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@contextmanager
def nothing_fails() -> Iterator[None]:
    """Fail where an error is logged, or an exception reaches the event loop."""
    errors = _Errors()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.found.append(repr(context)))
    logging.getLogger("llama_deploy").addHandler(errors)
    try:
        yield
    finally:
        logging.getLogger("llama_deploy").removeHandler(errors)
    assert errors.found == []


async def some_turns(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def with_instance(plane: ControlPlane, frames: list[bytes]) -> None:
    """An instance says these frames, as its socket would hand them over, and is gone."""
    said: list[bytes] = []
    port = plane.gateway.attach(lambda operations: said.append(encode_frame(operations)), close=lambda: None)
    for data in frames:
        try:
            operations = decode_instance_frame(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break  # the socket says so, and ends
        port.receive(operations)
        await some_turns()
    port.closed()


async def with_client(plane: ControlPlane, frames: list[bytes]) -> None:
    """The same for a client; what it is told can be decoded."""
    said: list[bytes] = []
    port = plane.clients.attach(lambda operations: said.append(encode_frame(operations)))
    for data in frames:
        try:
            operations = decode_client_frame(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break
        port.receive(operations)
        await some_turns()
    port.close()
    for data in said:
        decode_reply_frame(data)


async def finish(made: World) -> None:
    """An honest instance comes, people answer, time passes: every task ends once, with a history without a hole."""
    plane = made.plane
    honest = LinkedRunner([echo])
    await honest.connect(plane)
    entries = [await plane.engine.cache.get(task_id) for task_id in TASKS]
    for _ in range(60):
        await some_turns()
        if all(entry.ended for entry in entries):
            break
        for entry in entries:
            asking = [step.step_id for step in entry.open.values() if step.asking]
            for step_id in asking:
                try:
                    await plane.signals.send_input(entry.row.task_id, "yes", step_id=step_id)
                except LlamaDeployError:
                    continue  # it went on by itself
        made.manual.advance(STEP_S)
    for task_id in TASKS:
        entry = await plane.engine.cache.get(task_id)
        assert entry.ended, plane.views.task(entry)
        entries_found = await history(plane, task_id)
        assert [found.seq for found in entries_found] == list(range(1, len(entries_found) + 1))
        assert [found.seq for found in entries_found if found.outcome is not None] == [len(entries_found)]
        await stream(plane, task_id)
    assert (await submitted_and_answered(made)) == "after"
    await honest.stop()


async def submitted_and_answered(made: World) -> str:
    """Somebody else's task goes as if nothing had been."""
    entry = await submit(made.plane, SERVICE, "after")
    for _ in range(200):
        if entry.ended:
            break
        await some_turns()
    result = (await made.plane.views.result(entry)).result
    assert result is not None
    return result.result


async def abused(use: Any, frames: list[bytes]) -> None:
    async with world(clock=ManualClock()) as made:
        with nothing_fails():
            for task_id in TASKS:
                await submit(made.plane, SERVICE, "text", task_id=task_id, wait_for_service=True)
            await use(made.plane, frames)
            await finish(made)


@thorough
@given(frames=conversations(InstanceOp, greeted=True))
def test_whatever_an_instance_says(frames: list[bytes]) -> None:
    asyncio.run(abused(with_instance, frames))


@thorough
@given(frames=conversations(ClientOp, greeted=False))
def test_whatever_a_client_says(frames: list[bytes]) -> None:
    asyncio.run(abused(with_client, frames))


async def test_the_abuse_comes_through() -> None:
    """What is sent well formed has its effect: the tests above are not about refusals only."""
    async with world(clock=ManualClock()) as made:
        entry = await submit(made.plane, SERVICE, "text", task_id="t0", wait_for_service=True)
        result = msgspec.json.encode({"task_id": "", "history": [], "result": "abuse"})
        frames = [encode_frame([greeting()]), encode_frame([Answer("t0:1", 1, result, 0.0, 0.0)])]
        await with_instance(made.plane, frames)
        await some_turns()
        assert entry.ended
