"""Our client, as a user would write it: one `Client`, one connection, as many calls at once as wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import uvloop

from benchmarks import load
from benchmarks.cost import CpuMeter
from benchmarks.load import Figures, Load
from llama_deploy import Client

WIDER = 10
"""So many times as wide as a fan-out is the widest map."""

Measured = Callable[[Client, Load], Awaitable[Figures]]


def connected(measured: Measured) -> load.Job:
    """Waits until the service is there, then measures."""

    async def run(wanted: Load) -> Figures:
        async with Client(wanted.options["url"]) as client:
            await client.run(wanted.options["ready"], wait_for_service=True, **wanted.options["ready_input"])
            return await measured(client, wanted)

    return run


async def echo(client: Client, wanted: Load) -> Figures:
    return await load.echo(lambda text: client.run("echo", text=text), str.upper, wanted)


async def two_hop(client: Client, wanted: Load) -> Figures:
    return await load.echo(lambda text: client.run("echo", text=text), lambda text: text.upper() + "!", wanted)


async def fan_out(client: Client, wanted: Load) -> Figures:
    async def scatter(steps: int) -> int:
        return len(await client.run("echo", text=str(steps)))

    return await load.fan_out(scatter, wanted)


async def wide_map(client: Client, wanted: Load) -> Figures:
    """`Map` over `steps` items; and CPU per step of ten times as many at once, against ten such tasks in a row."""

    async def scatter(steps: int) -> int:
        items = [{"text": f"step {index}"} for index in range(steps)]
        return len(await client.run("echo", input=items, options={"orchestrator": "map"}))

    figures = await load.fan_out(scatter, wanted)
    with CpuMeter(wanted.processes) as narrow:
        for _ in range(WIDER):
            load.check(await scatter(wanted.steps), wanted.steps)
    with CpuMeter(wanted.processes) as wide:
        load.check(await scatter(WIDER * wanted.steps), WIDER * wanted.steps)
    cpu_ms = sum(narrow.used_s().values()) * 1000 / (WIDER * wanted.steps)
    return {**figures, "cpu_ms_per_step": cpu_ms, "cpu_growth": _growth(narrow, wide)}


async def group_chat(client: Client, wanted: Load) -> Figures:
    """Chats of many turns against as many turns in chats of few; the ids of one of each are known to the driver."""
    few, many = wanted.options["few"], wanted.options["many"]

    async def chat(turns: int, task_id: str | None = None) -> None:
        task = {"task_id": task_id} if task_id is not None else {}
        said = await client.run("remark", input="the tides", options={"orchestrator": f"chat-{turns}"}, **task)
        load.check(said.rpartition(" ")[0].endswith("tides"), expected=True)

    await chat(few, "chat-few")
    await chat(many, "chat-many")
    with CpuMeter(wanted.processes) as short:
        for _ in range(wanted.repeats * many // few):
            await chat(few)
    began = time.perf_counter()
    with CpuMeter(wanted.processes) as long:
        for _ in range(wanted.repeats):
            await chat(many)
    return {"turns_per_s": wanted.repeats * many / (time.perf_counter() - began), "cpu_growth": _growth(short, long)}


def _growth(small: CpuMeter, large: CpuMeter) -> float:
    return sum(large.used_s().values()) / sum(small.used_s().values())


async def streams(client: Client, wanted: Load) -> Figures:
    """Live latency with pauses between the events, then `count` events as fast as they come, then all of them again."""
    task_id = await client.submit("ticker", count=int(wanted.options["live_count"]), pause_s=0.005)
    delays_s = [time.monotonic() - event.data async for event in client.stream(task_id)]
    load.check(len(delays_s), wanted.options["live_count"])

    began = time.perf_counter()
    task_id = await client.submit("ticker", count=wanted.count, pause_s=0)
    load.check(await count_events(client, task_id), wanted.count)
    flowing_s = time.perf_counter() - began

    async with Client(wanted.options["url"]) as later:
        began = time.perf_counter()
        load.check(await count_events(later, task_id), wanted.count)
        resume_s = time.perf_counter() - began
    live = {f"live_{name}": value for name, value in load.latency_figures(delays_s).items()}
    return {**live, "events_per_s": wanted.count / flowing_s, "resume_ms": resume_s * 1000}


async def count_events(client: Client, task_id: str) -> int:
    """Reads the whole stream; fails on a gap."""
    count = 0
    async for event in client.stream(task_id):
        load.check(event.index, count)
        count += 1
    return count


async def many(client: Client, wanted: Load) -> Figures:
    """`count` tasks, `width` at once, no clock stops it."""
    endless = replace(wanted, seconds=float("inf"))
    return await load.outstanding(lambda text: client.run("echo", text=text), str.upper, endless)


async def session(client: Client, wanted: Load) -> Figures:
    """`count` tasks in one session, in ten slices; the last slice against the first."""
    session_id = (await client.create_session()).session_id
    part = replace(wanted, seconds=float("inf"), count=wanted.count // 10)
    slices = [
        await load.outstanding(lambda text: client.run("echo", session_id=session_id, text=text), str.upper, part)
        for _ in range(10)
    ]
    first, last = slices[0], slices[-1]
    return {
        "cpu_growth": last["cpu_ms_per_task"] / first["cpu_ms_per_task"],
        "time_growth": first["tasks_per_s"] / last["tasks_per_s"],
        "tasks_per_s": last["tasks_per_s"],
    }


async def held(client: Client, wanted: Load) -> Figures:
    """One step that its first instance never finishes; says when it has begun."""
    task_id = await client.submit("hold", marker=wanted.options["marker"])
    async for _ in client.stream(task_id):  # its first event says that it has begun
        break
    load.report({"event": "begun"})
    load.check(await client.result(task_id), "done")
    return {"ended_at": time.monotonic()}


async def in_flight(client: Client, wanted: Load) -> Figures:
    """`width` steps of a second each; says when all of them are acknowledged, then waits for every result."""
    task_ids = await asyncio.gather(*(client.submit("nap", seconds=1.0) for _ in range(wanted.width)))
    load.report({"event": "accepted"})
    answers = await asyncio.gather(*(client.result(task_id) for task_id in task_ids))
    return {"ended_at": time.monotonic(), "completed": sum(answer == "rested" for answer in answers)}


if __name__ == "__main__":
    measured = (echo, two_hop, fan_out, wide_map, group_chat, streams, many, session, held, in_flight)
    load.main({job.__name__: connected(job) for job in measured}, runner=uvloop.run)
