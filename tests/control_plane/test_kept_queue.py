"""A queue that outlives the control plane, as a broker does: nothing is sent twice over, and nothing is run twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.control_plane.harness import FakeInstance, submit, until

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.message_queues import Envelope, SimpleMessageQueue
from llama_deploy.message_queues.base import Capabilities
from llama_deploy.messages.frames import Deliver
from llama_deploy.state_stores import MemoryStore
from llama_deploy.types import ServiceDefinition

SETTINGS = EngineSettings(recovery_grace_s=0.1, overdue_s=0.05)


class KeptQueue(SimpleMessageQueue):
    """What was published stays when a control plane stops; it does not know its steps by name, as a broker does not."""

    capabilities = Capabilities(in_process=False, ordered=True)

    def __init__(self) -> None:
        super().__init__()
        self.namespace = ""
        self.published: list[str] = []

    def identify(self, namespace: str) -> None:
        self.namespace = namespace

    async def stop(self) -> None:
        """It is the broker's."""

    def publish(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        self.published += [envelope.step_id for envelope in envelopes]
        return super().publish(envelopes)

    def may_hold(self, topic: str, step_id: str, since: float) -> bool:
        oldest_s = self.statistics(topic).oldest_s
        return oldest_s is not None and since >= self._clock.now() - oldest_s - 1.0


@asynccontextmanager
async def plane_on(store: MemoryStore, queue: KeptQueue) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(store=store, queue=queue, settings=SETTINGS)
    await plane.start()
    plane.engine.registry.restore(
        {"echo": ServiceDefinition(service_name="echo", description="").model_dump_json().encode()}
    )
    try:
        yield plane
    finally:
        await plane.stop()


async def test_a_backlog_is_left_standing_by_a_restart_and_taken_up() -> None:
    queue = KeptQueue()
    store = MemoryStore()
    async with plane_on(store, queue) as plane:
        for _ in range(20):
            await submit(plane)
        await until(lambda: queue.depth("echo") == 20)
        identity = queue.namespace
    async with plane_on(store, queue) as plane:
        assert queue.namespace == identity != ""
        await until(lambda: plane.engine.cache.unfinished == 20)
        await until(lambda: all(step.overdue_s for e in plane.engine.cache.tasks.values() for step in e.open.values()))
        assert len(queue.published) == 20, "a long queue is never published twice over"
        instance = FakeInstance(concurrency=50)
        await instance.connect(plane)
        await instance.delivery(20)
        assert len({step.step_id for step in instance.all(Deliver)}) == len(instance.all(Deliver)) == 20


async def test_what_the_queue_reports_as_lost_goes_out_at_once_and_what_is_held_does_not() -> None:
    queue = KeptQueue()
    async with plane_on(MemoryStore(), queue) as plane:
        instance = FakeInstance(concurrency=1)
        await instance.connect(plane)
        for _ in range(3):
            await submit(plane)
        held = await instance.delivery()
        await until(lambda: queue.depth("echo") == 2)
        assert queue.withdraw(queue.published) == 2
        before = len(queue.published)
        queue.on_return(True)
        await until(lambda: queue.depth("echo") == 2)
        assert held.step_id not in queue.published[before:]
        queue.on_return(False)
        await asyncio.sleep(0)
        assert len(queue.published) == before + 2, "without a loss nothing is sent again"


async def test_a_duplicate_of_what_an_instance_holds_goes_to_nobody() -> None:
    queue = KeptQueue()
    async with plane_on(MemoryStore(), queue) as plane:
        first, second = (FakeInstance(instance_id=name, concurrency=1) for name in ("first", "second"))
        await first.connect(plane)
        await submit(plane)
        step = await first.delivery()
        await second.connect(plane)
        body = b"a body that must not arrive"
        queue.publish([Envelope(step.step_id, step.attempt, "echo", body)] * 2)
        queue.publish([Envelope("unknown-task:1", 1, "echo", body)])
        await submit(plane)
        other = await second.delivery()  # its place is still free after the duplicates
        assert other.step_id != step.step_id
        assert len(first.all(Deliver)) == len(second.all(Deliver)) == 1


async def test_a_body_that_the_carrier_left_out_comes_from_memory() -> None:
    queue = KeptQueue()
    async with plane_on(MemoryStore(), queue) as plane:
        await submit(plane, text="as it was")
        await until(lambda: queue.depth("echo") == 1)
        (whole,) = queue.peek("echo", limit=1)
        queue.withdraw([whole.step_id])
        queue.publish([Envelope(whole.step_id, whole.attempt, whole.topic, b"")])
        instance = FakeInstance()
        await instance.connect(plane)
        assert b"as it was" in bytes((await instance.delivery()).message)
