"""A service that calls others and pays once, though its first attempt fails when nearly all is done.

The second attempt finds the bookings that the first one has called, and the receipt that it has had remembered: nothing
is booked or paid twice. Run it: python examples/calls.py
"""

from __future__ import annotations

import asyncio

from llama_deploy import Deployment, RetryPolicy, ServiceContext, service


@service
async def book(what: str, place: str) -> str:
    """Book something."""
    print(f"booking a {what} in {place}")
    return f"{what} in {place}"


@service(retry=RetryPolicy(initial_s=0.1))
async def trip(place: str, context: ServiceContext) -> str:
    """Book everything that a trip needs, at the same time, and pay for it."""
    booked = await asyncio.gather(*(context.call("book", what=what, place=place) for what in ("flight", "hotel")))

    def pay() -> str:
        print(f"paying for {' and '.join(booked)}")  # a bank would get context.step_id as its idempotency key
        return "receipt 17"

    receipt = await context.once("pay", pay)
    if context.attempt == 1:
        raise ConnectionError("the mail server does not answer")
    return f"{place}, {receipt}, attempt {context.attempt}"


async def main() -> None:
    """Submit one task, and show what its history says."""
    async with Deployment(services=[book, trip], name="calls", store=":memory:") as deployment:
        task_id = await deployment.submit("trip", place="Oslo")
        print(await deployment.client.result(task_id))
        async for entry in deployment.client.history(task_id):
            print(f"  {entry.kind}" + (f" {entry.key}" if entry.key else ""))
        children = [task async for task in deployment.client.list_tasks() if task.origin == f"child:{task_id}"]
        print(f"{len(children)} tasks were called")


asyncio.run(main())
