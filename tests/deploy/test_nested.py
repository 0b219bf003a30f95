"""Workflows that are given to steps by `add_workflows`: called where they are services, run in place elsewhere."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import Deployment, WorkflowService
from llama_deploy.deploy.nested import install
from llama_deploy.errors import SettingError

install()
RAN_IN: list[str] = []


class Inner(Workflow):
    """Adds a word."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    @step
    async def run_step(self, ev: StartEvent) -> StopEvent:
        RAN_IN.append(self.place)
        return StopEvent(result=f"{ev.arg1}_result")


class Outer(Workflow):
    """Adds a word to what the inner one says."""

    @step()
    async def run_step(self, ev: StartEvent, inner: Inner) -> StopEvent:
        said = await inner.run(arg1=ev.arg1)
        return StopEvent(result=f"{said}_result")


def outer(place: str) -> Any:
    made: Any = Outer()
    made.add_workflows(inner=Inner(place))
    return made


@pytest.fixture(autouse=True)
def nowhere() -> None:
    RAN_IN.clear()


async def test_it_runs_in_place_outside_of_any_service() -> None:
    assert await outer("here").run(arg1="a") == "a_result_result"
    assert RAN_IN == ["here"]


async def test_it_is_called_where_it_is_a_service_and_each_instance_has_its_own() -> None:
    services = [WorkflowService(outer("inside"), name="outer"), WorkflowService(Inner("its service"), name="inner")]
    async with Deployment(services, store=":memory:", quiet=True) as deployment:
        assert await deployment.run("outer", arg1="a") == "a_result_result"
        assert RAN_IN == ["its service"]
        called = [task async for task in deployment.client.list_tasks(service="inner")]
        assert [task.state.value for task in called] == ["completed"]
    assert await outer("another").run(arg1="a") == "a_result_result"
    assert RAN_IN == ["its service", "another"]


async def test_it_runs_in_place_where_nobody_serves_it() -> None:
    async with Deployment([WorkflowService(outer("inside"), name="outer")], store=":memory:", quiet=True) as deployment:
        assert await deployment.run("outer", arg1="a") == "a_result_result"
    assert RAN_IN == ["inside"]


async def test_what_cannot_be_is_said() -> None:
    made: Any = Outer()
    with pytest.raises(SettingError, match="no step of Outer takes a workflow 'other'"):
        made.add_workflows(other=Inner("here"))
    with pytest.raises(SettingError, match="is a str"):
        made.add_workflows(inner="Inner")
    with pytest.raises(SettingError, match="no workflow 'inner' was added"):
        await Outer().run(arg1="a")


@pytest.mark.parametrize("name", ["deploy_workflow", "WorkflowService"])
def test_whatever_serves_workflows_brings_it(name: str) -> None:
    program = f"from llama_deploy import {name}; from workflows import Workflow; Workflow.add_workflows"
    subprocess.run([sys.executable, "-c", program], check=True)
