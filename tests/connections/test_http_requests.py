"""The rare requests: which route each method asks, what it makes of the answer, and what the network does to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from tests.client.fake_control_plane import FakeControlPlane

from llama_deploy.client import Client, InProcessTransport
from llama_deploy.connections.http_requests import HttpRequests
from llama_deploy.errors import (
    CannotReachError,
    ConnectionLostError,
    InvalidRequestError,
    LlamaDeployError,
    NoInputExpectedError,
    ProtocolError,
)
from llama_deploy.types import TaskState, TaskView

TASK = {"task_id": "t", "session_id": "s", "state": "working", "created_at": 1.0, "updated_at": 2.0}
SESSION = {"session_id": "s", "created_at": 1.0}
SERVICE = {"definition": {"service_name": "shout", "description": ""}, "state": "up"}


class Routes:
    """An HTTP application that answers from a table and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.answers: dict[str, Any] = {}
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])])

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        raw_path = request.scope["raw_path"].decode()
        self.asked.append((request.method, raw_path, dict(request.query_params), json.loads(body) if body else None))
        answer = self.answers[raw_path]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Response):
            return answer
        if isinstance(answer, LlamaDeployError):
            problem = answer.to_problem()
            return JSONResponse(problem, problem["status"], media_type="application/problem+json")
        return JSONResponse(answer)


@pytest.fixture
def routes() -> Routes:
    return Routes()


@pytest.fixture
async def client(routes: Routes) -> AsyncIterator[Client]:
    transport = InProcessTransport(FakeControlPlane().attach, routes.app)
    async with Client(transport=transport) as made:
        yield made


async def test_a_task(routes: Routes, client: Client) -> None:
    routes.answers["/v1/tasks/t"] = TASK
    assert await client.get_task("t") == TaskView.model_validate(TASK)
    assert routes.asked == [("GET", "/v1/tasks/t", {}, None)]


async def test_an_id_is_one_segment_of_the_path(routes: Routes, client: Client) -> None:
    routes.answers["/v1/tasks/a%2Fb%3Fc"] = TASK
    await client.get_task("a/b?c")
    with pytest.raises(InvalidRequestError, match="empty id"):
        await client.get_task("")


async def test_a_list_is_fetched_page_by_page(routes: Routes, client: Client) -> None:
    pages = [{"items": [TASK | {"task_id": str(n)}], "next": str(n) if n < 3 else None} for n in (1, 2, 3)]
    routes.answers["/v1/tasks"] = pages
    found = [task.task_id async for task in client.list_tasks(state=[TaskState.FAILED, "working"], service="x")]
    assert found == ["1", "2", "3"]
    filters = {"state": "failed,working", "service": "x", "limit": "100"}
    assert [asked[2] for asked in routes.asked] == [filters, filters | {"cursor": "1"}, filters | {"cursor": "2"}]


async def test_one_page(routes: Routes, client: Client) -> None:
    routes.answers["/v1/tasks"] = {"items": [], "next": "c"}
    page = await client.list_tasks_page(state="completed", session_id="s", limit=5, cursor="b")
    assert page.next == "c"
    assert routes.asked[0][2] == {"state": "completed", "session_id": "s", "limit": "5", "cursor": "b"}
    with pytest.raises(InvalidRequestError, match="'done' is no state of a task"):
        await client.list_tasks_page(state="done")


async def test_history_is_fetched_page_by_page(routes: Routes, client: Client) -> None:
    entries = [{"seq": seq, "at": 1.0, "kind": "answered", "state": "working"} for seq in (1, 2, 3)]
    routes.answers["/v1/tasks/t/history"] = [{"items": entries[:2], "next": 2}, {"items": entries[2:], "next": None}]
    assert [entry.seq async for entry in client.history("t")] == [1, 2, 3]
    assert [asked[2] for asked in routes.asked] == [{"after": "0"}, {"after": "2"}]


async def test_input_and_cancel(routes: Routes, client: Client) -> None:
    routes.answers["/v1/tasks/t/input"] = TASK
    routes.answers["/v1/tasks/t/cancel"] = TASK | {"state": "canceled"}
    await client.send_input("t", {"ok": True})
    await client.send_input("t", "yes", step_id="t:1")
    assert (await client.cancel("t", reason="late")).state is TaskState.CANCELED
    await client.cancel("t")
    assert [asked[3] for asked in routes.asked] == [
        {"value": {"ok": True}},
        {"value": "yes", "step_id": "t:1"},
        {"reason": "late"},
        {},
    ]
    with pytest.raises(InvalidRequestError, match="cannot be sent"):
        await client.send_input("t", b"bytes")


async def test_sessions(routes: Routes, client: Client) -> None:
    routes.answers |= {
        "/v1/sessions": [SESSION, SESSION, {"items": [SESSION], "next": None}, {"items": [], "next": None}],
        "/v1/sessions/s": SESSION,
        "/v1/sessions/s/state": {"k": 1},
    }
    assert (await client.create_session("s")).session_id == "s"
    await client.create_session()
    assert [session.session_id async for session in client.list_sessions()] == ["s"]
    assert (await client.list_sessions_page(limit=1)).items == []
    assert (await client.get_session("s")).created_at == 1.0
    assert await client.get_session_state("s") == {"k": 1}
    assert [asked[3] for asked in routes.asked[:2]] == [{"session_id": "s"}, {}]


async def test_services_and_status(routes: Routes, client: Client) -> None:
    routes.answers |= {
        "/v1/services": {"items": [SERVICE], "next": None},
        "/v1/services/shout": SERVICE,
        "/v1/status": {"tasks": {}},
        "/readyz": [JSONResponse({}, 200), JSONResponse({}, 503)],
    }
    assert [view.definition.service_name for view in await client.list_services()] == ["shout"]
    assert (await client.get_service("shout")).state == "up"
    assert await client.status() == {"tasks": {}}
    assert [await client.health(), await client.health()] == [True, False]


async def test_a_problem_is_the_error_that_it_was(routes: Routes, client: Client) -> None:
    routes.answers["/v1/tasks/t/input"] = NoInputExpectedError("not waiting", why="it works", fix="wait", waiting=[])
    with pytest.raises(NoInputExpectedError) as caught:
        await client.send_input("t", 1)
    assert (caught.value.why, caught.value.fix, caught.value.details) == ("it works", "wait", {"waiting": []})


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (PlainTextResponse("<html>", 404), ProtocolError),
        (PlainTextResponse("down", 503), CannotReachError),
        (JSONResponse({"detail": "Not Found"}, 404), ProtocolError),
        (PlainTextResponse("fine"), ProtocolError),
        (JSONResponse({"task_id": 7}), ProtocolError),
    ],
)
async def test_what_is_not_ours_is_told(
    routes: Routes, client: Client, answer: Response, error: type[LlamaDeployError]
) -> None:
    routes.answers["/v1/tasks/t"] = answer
    with pytest.raises(error):
        await client.get_task("t")


async def test_objects_are_expected_where_objects_are(routes: Routes, client: Client) -> None:
    routes.answers |= {"/v1/status": JSONResponse([]), "/v1/sessions/s/state": JSONResponse([])}
    with pytest.raises(ProtocolError):
        await client.status()
    with pytest.raises(ProtocolError):
        await client.get_session_state("s")


async def test_nothing_listens(free_port: int) -> None:
    async with Client(f"http://127.0.0.1:{free_port}") as client:
        for call in (client.get_task("t"), client.cancel("t"), client.health()):
            with pytest.raises(CannotReachError, match="connection refused"):
                await call


async def test_a_connection_that_is_reset_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def send(*_: Any, **__: Any) -> Any:
        asked.append("once")
        raise httpx2.ConnectError("connection reset")

    async with Client("http://127.0.0.1:1") as client:
        monkeypatch.setattr("httpx2.AsyncClient.send", send)
        for call in (client.get_task("t"), client.cancel("t")):
            with pytest.raises(CannotReachError, match="connection reset"):
                await call
    assert len(asked) == 2


@asynccontextmanager
async def scripted_server(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that gives each request of any connection the next answer and hangs up; empty: without a word."""
    left, seen = list(answers), list[bytes]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(left.pop(0))
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


FINE = b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}'


async def test_a_read_is_repeated_once_when_the_server_hangs_up() -> None:
    async with scripted_server(b"", FINE) as (url, seen):
        http = HttpRequests(url)
        assert await http.request("GET", "/v1/status") == (200, {"a": 1})
        await http.close()
    assert len(seen) == 2
    async with scripted_server(b"", b"") as (url, seen):
        http = HttpRequests(url)
        with pytest.raises(ConnectionLostError, match="during GET /v1/status"):
            await http.request("GET", "/v1/status")
        await http.close()


async def test_a_change_is_never_repeated_by_itself() -> None:
    async with scripted_server(b"", FINE) as (url, seen):
        http = HttpRequests(url)
        with pytest.raises(ConnectionLostError, match="during POST /x") as caught:
            await http.request("POST", "/x", json={})
        assert "not known whether the request was carried out" in caught.value.why
        await http.close()
    assert seen == [b"POST /x HTTP/1.1"]
