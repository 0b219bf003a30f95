"""The conformance suite over every carrier, on real brokers."""

from __future__ import annotations

import os

import pytest
from tests.support import eventually

from llama_deploy.message_queues import Envelope, MessageQueue
from llama_deploy.message_queues.opening import open_carrier
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.testing import QueueConformance


class TestConformance(QueueConformance):
    quiet_s = 0.15
    deadline_s = 90.0

    @pytest.fixture(autouse=True)
    def _url(self, shared_url: str) -> None:
        self.url = shared_url

    def make_queue(self) -> MessageQueue:
        return open_carrier(CarrierSettings(url=self.url, namespace=f"test{os.urandom(6).hex()}"))


async def test_how_much_waits_is_asked_of_the_broker_and_harms_no_connection(shared_url: str) -> None:
    namespace = f"test{os.urandom(6).hex()}"
    one, other = (open_carrier(CarrierSettings(url=shared_url, namespace=namespace)) for _ in range(2))
    await one.start()
    await other.start()
    one.publish([Envelope(topic="t", step_id=f"task:{number}", attempt=1, body=b"x") for number in range(3)])

    async def seen() -> bool:
        await other.refresh(["t"])
        return other.depth("t") == 3

    await eventually(seen)
    health = other.health()
    assert (health.connected, health.reconnects, health.error) == (True, 0, "")
    await one.stop()
    await other.stop()
