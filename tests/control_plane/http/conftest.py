"""What the tests over HTTP share: a deployment with a few services, and clients of its application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from tests.support import DEADLINE_S

from llama_deploy.apiserver import Deployment
from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.http.app import build_app
from llama_deploy.control_plane.http.listener import bind
from llama_deploy.control_plane.http.server import serving
from llama_deploy.errors import NonRetryableError
from llama_deploy.services import HumanService, ServiceContext, service

PAYLOAD_BYTES_MAX = 20_000
"""Small, so that what is too large is quickly made."""


@dataclass
class Served:
    """A deployment that runs, and the gates that its service `gate` waits at."""

    deployment: Deployment
    gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def open(self, name: str) -> None:
        """Let the task at this gate, or the one that will come there, go on."""
        self.gates.setdefault(name, asyncio.Event()).set()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """In memory; it has no network of its own."""
    gates: dict[str, asyncio.Event] = {}

    @service
    async def shout(text: str) -> str:
        """Upper case."""
        return text.upper()

    @service
    async def echo(value: Any = None) -> Any:
        """What it was given."""
        return value

    @service
    async def tell(context: ServiceContext, events: int) -> int:
        """Streams numbers."""
        for number in range(events):
            context.stream({"n": number})
        return events

    @service
    async def gate(context: ServiceContext, name: str) -> str:
        """Streams one event, then waits until the test lets it go on, then streams another."""
        context.stream("before")
        await gates.setdefault(name, asyncio.Event()).wait()
        context.stream("after")
        return "went through"

    @service
    async def fail(text: str) -> str:
        """Fails for good."""
        raise NonRetryableError(text)

    async with Deployment(
        [shout, echo, tell, gate, fail, HumanService(name="person")],
        store=":memory:",
        quiet=True,
        drain_timeout_s=0.1,
        settings=EngineSettings(payload_bytes_max=PAYLOAD_BYTES_MAX),
    ) as deployment:
        yield Served(deployment, gates)


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """Requests straight to the application; an answer is complete when it is returned."""
    transport = httpx2.ASGITransport(app=build_app(served.deployment.plane), raise_app_exceptions=False)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://test", timeout=DEADLINE_S, verify=False
    ) as client:
        yield client


@pytest.fixture
async def url(served: Served) -> AsyncIterator[str]:
    """Where the deployment listens."""
    listener = bind("127.0.0.1", 0)
    async with serving(served.deployment.plane, listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
async def live(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Requests over the socket, whose answers can be read while they go on."""
    async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S, verify=False) as client:
        yield client
