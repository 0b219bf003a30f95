"""Instances in a program of their own: what was begun for one whose start is given up is ended."""

from __future__ import annotations

import asyncio

import pytest
from tests.support import eventually

from llama_deploy.apiserver.local_instance import LinkedInstance, LocalInstance
from llama_deploy.control_plane import ControlPlane
from llama_deploy.services import Service, StepContext
from llama_deploy.state_stores import MemoryStore
from llama_deploy.types import ServiceDefinition, TaskResult


class Counted(Service):
    """Knows how often it was started and stopped."""

    def __init__(self) -> None:
        self.definition = ServiceDefinition(service_name="counted", description="counts")
        self.started = self.stopped = 0

    async def start(self) -> None:
        self.started += 1

    async def stop(self) -> None:
        self.stopped += 1

    async def run(self, context: StepContext) -> TaskResult:
        raise NotImplementedError


async def given_up(instance: LinkedInstance | LocalInstance, service: Counted) -> None:
    starting = asyncio.create_task(instance.start())
    await eventually(lambda: service.started)
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert (service.started, service.stopped) == (1, 1)


async def test_a_start_that_is_given_up_leaves_no_connection() -> None:
    service = Counted()
    instance = LinkedInstance([service], "http://127.0.0.1:1")
    await given_up(instance, service)
    assert instance._link is not None
    assert not instance._link.is_alive()


async def test_a_start_that_is_given_up_leaves_nothing_at_the_control_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    service, plane = Counted(), ControlPlane(store=MemoryStore())
    await plane.start()
    try:
        instance = LocalInstance(plane, [service])
        monkeypatch.setattr(instance.runner, "receive", lambda operations: None)  # it does not hear of its welcome
        await given_up(instance, service)
        await eventually(lambda: not plane.engine.registry.has_instance("counted"))
    finally:
        await plane.stop()
