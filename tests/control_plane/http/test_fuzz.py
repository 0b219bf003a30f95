"""Every operation, fuzzed from the app's own OpenAPI document: no 500, no hang, and no answer that is not described."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from tests.control_plane.frame_abuse import conversations
from tests.support import DEADLINE_S
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from llama_deploy.apiserver import Deployment
from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.http.app import build_app
from llama_deploy.messages.frames import (
    ClientOp,
    Goodbye,
    InstanceOp,
    Refused,
    decode_control_frame,
    decode_reply_frame,
    encode_frame,
)
from llama_deploy.services import HumanService, service
from llama_deploy.state_stores import MemoryStore

ENDED, WAITING = "ended", "waiting"


@service
async def shout(text: str) -> str:
    """Upper case."""
    return text.upper()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A deployment on a thread of its own, with one task that has ended and one that waits for a person."""
    ready: list[str] = []
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with Deployment(
            [shout, HumanService()],
            store=":memory:",
            port=0,
            quiet=True,
            drain_timeout_s=0.1,
            settings=EngineSettings(payload_bytes_max=100_000),
        ) as deployment:
            await deployment.run("shout", text="hello", task_id=ENDED, session_id="session")
            await deployment.submit("human", input="?", task_id=WAITING)
            ready.append(deployment.url)
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        yield ready[0]
    finally:
        stop.set()
        thread.join()


operations = schemathesis.openapi.from_dict(build_app(ControlPlane(store=MemoryStore())).app.openapi())
thorough = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
described = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.slow
@operations.parametrize()
@thorough
def test_whatever_is_sent_is_answered_as_described(case: Case[Any], url: str) -> None:
    wait_briefly(case)
    response = case.call(base_url=url, timeout=DEADLINE_S)
    case.validate_response(response, checks=[*described, negative_data_rejection, unsupported_method])


@pytest.mark.slow
@operations.include(path_regex="task_id|session_id|name").parametrize()
@thorough
def test_whatever_is_sent_about_what_exists_is_answered_as_described(case: Case[Any], url: str) -> None:
    wait_briefly(case)
    endless = case.path.endswith(("/stream", "/history"))
    known = {"task_id": ENDED if endless else WAITING, "session_id": "session", "name": "shout"}
    for name in case.path_parameters or {}:
        case.path_parameters[name] = known.get(name, "none")
    response = case.call(base_url=url, timeout=DEADLINE_S)
    case.validate_response(response, checks=described)


instance_says = conversations(InstanceOp, greeted=True).map(lambda frames: ("instance", frames))
client_says = conversations(ClientOp, greeted=False).map(lambda frames: ("client", frames))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(said=instance_says | client_says)
def test_whatever_is_said_on_a_socket_others_notice_nothing(said: tuple[str, list[bytes]], url: str) -> None:
    asyncio.run(asyncio.wait_for(say(url, *said), DEADLINE_S))


async def say(url: str, role: str, frames: list[bytes]) -> None:
    """Say it; each reply is a frame, and a refusal of the whole connection is its last. Then ask as somebody else."""
    decode = decode_control_frame if role == "instance" else decode_reply_frame
    heard: list[Any] = []
    async with connect(
        f"ws{url.removeprefix('http')}/v1/connect/{role}", max_size=None, open_timeout=DEADLINE_S
    ) as socket:
        try:
            for frame in frames:
                await socket.send(frame)
            await socket.send(b"the end")
            async for data in socket:
                assert isinstance(data, bytes)
                heard += decode(data)
        except ConnectionClosed:
            pass  # it was refused before it had said everything
    refusals = [operation for operation in heard if isinstance(operation, Refused) and operation.request == 0]
    left = any(encode_frame([Goodbye()])[1:] in frame for frame in frames) and not refusals  # it has ended it itself
    assert left or refusals == heard[-1:], "what ends a connection is said, and is the last that is said"
    async with Client(url, timeout_s=DEADLINE_S) as other:
        assert await other.run("shout", text="others") == "OTHERS"


def wait_briefly(case: Case[Any]) -> None:
    """A time to wait that is allowed, but longer than a test has."""
    query = case.query or {}
    try:
        wait_s = float(query.get("wait_s", 0))
    except (TypeError, ValueError):
        return
    if 0.01 < wait_s <= 3600:
        query["wait_s"] = 0.01
