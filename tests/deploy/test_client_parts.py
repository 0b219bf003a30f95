"""`Client` with the arguments and the parts of the published one: the program of its 0.8 users, and what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support import PROCESS_S
from tests.support.published import BLOCKING_08, CORE_08, PROGRAMS, SERVER_08, serving

from llama_deploy import (
    AsyncLlamaDeployClient,
    Client,
    ControlPlaneConfig,
    Deployment,
    NonRetryableError,
    SyncClient,
    TaskDefinition,
    TaskFailed,
    service,
)
from llama_deploy.client.published import settings_of
from llama_deploy.connections.websocket import WebSocketTransport
from llama_deploy.errors import SettingError


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with serving() as port:
        yield port


def test_a_program_of_0_8_runs_unchanged(port: str) -> None:
    command = [sys.executable, "-W", "error", str(PROGRAMS / "client_08.py"), port]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    core, server = seen["core"], seen["apiserver"]
    # deliberately different: a failure does not look like a result, a session is made under the id that is asked for
    assert core == CORE_08 | {"failed": "TaskFailed", "created": False}
    assert server.pop("refused")  # it is no deployment file
    assert server == SERVER_08
    assert seen["sync"] == BLOCKING_08


def test_one_client_serves_two_loops_and_threads(port: str) -> None:
    client = Client(control_plane_url=f"http://127.0.0.1:{port}", timeout=PROCESS_S)

    async def run(text: str) -> Any:
        session = await client.core.sessions.create()
        return await session.run("echo", text=text)

    assert [asyncio.run(run("a")), asyncio.run(run("b"))] == ["echo a", "echo b"]

    async def beside_a_running_loop() -> Any:
        return client.sync.core.sessions.create().run("echo", text="c")

    assert asyncio.run(beside_a_running_loop()) == "echo c"


async def test_a_task_costs_one_round_trip_over_a_connection_that_stays(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `Client.run`: so the published clients of this package are as fast as that, whatever the clock says."""
    sent: list[Any] = []
    connected: list[str] = []
    send, connect, request = WebSocketTransport.send, WebSocketTransport.connect, WebSocketTransport.request

    def counted_send(self: WebSocketTransport, ops: list[Any]) -> None:
        sent.extend(ops)
        send(self, ops)

    async def counted_connect(self: WebSocketTransport, *args: Any) -> None:
        connected.append(self.address)
        await connect(self, *args)

    async def counted_request(self: WebSocketTransport, *args: Any, **kwargs: Any) -> Any:
        sent.append(args)
        return await request(self, *args, **kwargs)

    url = f"http://127.0.0.1:{port}"
    client = Client(control_plane_url=url, api_server_url=url, timeout=PROCESS_S)
    session = await client.core.sessions.create()
    older = await AsyncLlamaDeployClient(ControlPlaneConfig(host="127.0.0.1", port=int(port))).create_session()
    deployment = await client.apiserver.deployments.get("desk")
    monkeypatch.setattr(WebSocketTransport, "send", counted_send)
    monkeypatch.setattr(WebSocketTransport, "connect", counted_connect)
    monkeypatch.setattr(WebSocketTransport, "request", counted_request)
    for number in range(3):
        assert await session.run("echo", text=f"{number}") == f"echo {number}"
        assert await older.run("echo", text=f"{number}") == f"echo {number}"
        task = TaskDefinition(input=f'{{"text": "{number}"}}', agent_id="echo")
        assert await deployment.tasks.run(task) == f"echo {number}"
    assert len(sent) == 9
    assert set(connected) == {url}
    assert len(connected) <= 2  # one for each kind of client


def test_a_server_that_is_not_there_is_down_and_said_so(free_port: int) -> None:
    status = Client(api_server_url=f"http://127.0.0.1:{free_port}").sync.apiserver.status()
    assert status.status.value == "Down"
    assert "cannot reach" in status.status_message


async def test_the_client_of_a_deployment_has_the_parts_without_a_port() -> None:
    @service
    def shout(text: str) -> str:
        if not text:
            raise NonRetryableError("nothing to shout")
        return text.upper()

    async with Deployment([shout], name="desk", store=":memory:", quiet=True) as deployment:
        session = await deployment.client.core.sessions.get_or_create("mine")
        assert await session.run("shout", text="a") == "A"
        assert [task.input for task in await session.get_tasks()] == ['{"text":"a"}']
        assert [one.id for one in await deployment.client.apiserver.deployments.list()] == ["desk"]
        with pytest.raises(SettingError, match="cannot be waited for"):
            _ = deployment.client.sync
        with pytest.raises(TaskFailed, match="nothing to shout"):
            await session.run("shout", text="")


def test_both_words_for_the_same_may_agree_and_not_differ() -> None:
    with pytest.raises(SettingError, match="two words for the same"):
        Client("http://127.0.0.1:1", control_plane_url="http://127.0.0.1:2")
    with pytest.raises(SettingError, match="two words for the same"):
        SyncClient(timeout_s=1, timeout=2)
    with pytest.raises(SettingError, match="'soon'"):
        Client(timeout="soon")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'control_plane'"):
        Client(control_plane="http://127.0.0.1:2")  # type: ignore[call-arg]
    same = Client("http://127.0.0.1:1", control_plane_url="http://127.0.0.1:1", timeout=None, poll_interval=0.1)
    assert (same.settings.url, same.settings.timeout_s) == ("http://127.0.0.1:1", math.inf)


def test_variables_say_what_no_argument_says(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = settings_of(None, None, {}, own_transport=False)
    assert (plain.url, plain.api_server_url) == ("http://127.0.0.1:8000", "http://localhost:4501")
    assert (plain.timeout_s, plain.verify) == (600.0, True)
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", "https://plane.example")
    monkeypatch.setenv("LLAMA_DEPLOY_API_SERVER_URL", "https://server.example")
    monkeypatch.setenv("LLAMA_DEPLOY_TIMEOUT", "7")
    monkeypatch.setenv("LLAMA_DEPLOY_DISABLE_SSL", "True")
    told = settings_of(None, None, {}, own_transport=False)
    assert (told.url, told.api_server_url) == ("https://plane.example", "https://server.example")
    assert (told.timeout_s, told.verify) == (7.0, False)
    ours = settings_of("http://127.0.0.1:1", 3.0, {"disable_ssl": False}, own_transport=False)
    assert (ours.url, ours.timeout_s, ours.verify) == ("http://127.0.0.1:1", 3.0, True)
