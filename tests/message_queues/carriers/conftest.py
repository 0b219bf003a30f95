"""Brokers for the tests of carriers: one for each kind that they share, and private ones to be killed."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.support.brokers import BROKERS, SHARED, Broker, listens

from llama_deploy.message_queues.opening import open_carrier
from llama_deploy.message_queues.settings import CarrierSettings


@pytest.fixture(scope="module", autouse=True)
def drivers_leave_nothing_to_others() -> Iterator[None]:
    """What the drivers left half closed, when a broker was killed, is collected here, and not in somebody's test."""
    yield
    report, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = report


@pytest.fixture(scope="module", params=list(BROKERS))
async def shared_url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a broker of each kind: the machine's own, or one that is started for the tests of a module.

    Not of the session: the loop would live as long, and with it what drivers have left there.
    """
    kind: str = request.param
    port, url = SHARED.get(kind, (0, ""))
    if port and listens(port):
        yield url
        return
    broker = BROKERS[kind]()
    await broker.start()
    yield broker.url
    await broker.remove()


@pytest.fixture(scope="module", params=[kind for kind in BROKERS if kind != "kafka"])  # test_kafka.py has its own
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """A private broker that may be killed, and runs again when the test has ended."""
    broker = BROKERS[request.param]()
    await broker.start()
    yield broker
    await broker.remove()


def new_namespace() -> str:
    """A name that no other test has."""
    return f"test{os.urandom(6).hex()}"


def carrier_at(url: str, namespace: str | None = None, **settings: object) -> object:
    """A carrier, not started."""
    return open_carrier(CarrierSettings(url=url, namespace=namespace or new_namespace(), **settings))  # type: ignore[arg-type]
