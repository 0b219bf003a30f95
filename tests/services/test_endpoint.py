"""HTTP endpoints as services, against a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.services.attempts import Attempt

from llama_deploy.errors import NonRetryableError, ServiceRaisedError, SettingError
from llama_deploy.services import EndpointService, error_from_exception

pytestmark = pytest.mark.anyio


class Server:
    """What it was asked, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: tuple[int, dict[str, str], bytes] = (200, {"Content-Type": "application/json"}, b"{}")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append((self.command, self.path, dict(self.headers), body))
                status, headers, content = outer.answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET = do_PUT = handle_any  # noqa: N815 - the names of the base class

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/work"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


async def call(service: EndpointService, given: Any) -> Any:
    await service.start()
    try:
        result = await service.run(Attempt(given))
    finally:
        await service.stop()
    return result.output


async def test_arguments_go_as_json_with_the_step_id_and_json_comes_back(server: Server) -> None:
    server.answer = (200, {"Content-Type": "application/json; charset=utf-8"}, b'{"high": [1, null]}')
    service = EndpointService("tide", server.url, headers=lambda: {"Authorization": "Bearer now"})
    assert await call(service, {"place": "Bergen"}) == {"high": [1, None]}
    method, path, headers, body = server.asked[0]
    assert (method, path, json.loads(body)) == ("POST", "/work", {"place": "Bergen"})
    assert headers["Idempotency-Key"] == "task:1"
    assert headers["Authorization"] == "Bearer now"


async def test_text_and_queries(server: Server) -> None:
    server.answer = (200, {"Content-Type": "text/plain; charset=latin-1"}, "fl\xf3d".encode("latin-1"))
    assert await call(EndpointService("tide", server.url), "ebb") == "fl\xf3d"
    assert server.asked[0][3] == b"ebb"
    assert await call(EndpointService("tide", server.url, method="GET"), {"at": "noon & later"}) == "fl\xf3d"
    assert server.asked[1][1] == "/work?at=noon%20%26%20later" or server.asked[1][1] == "/work?at=noon+%26+later"


@pytest.mark.parametrize(
    ("status", "final"), [(400, True), (404, True), (429, False), (409, False), (503, False), (302, True)]
)
async def test_refusals(server: Server, status: int, final: bool) -> None:
    server.answer = (status, {"Retry-After": "7", "Location": "/elsewhere"}, b"because")
    with pytest.raises(NonRetryableError if final else ServiceRaisedError, match=f"answered {status}") as refused:
        await call(EndpointService("tide", server.url + "?key=secret"), {})
    assert refused.value.why == "because"
    assert "secret" not in str(refused.value)
    told = error_from_exception(refused.value)
    assert (told.retryable, told.retry_after_s) == (not final, None if final else 7.0)
    assert len(server.asked) == 1


async def test_what_is_no_answer(server: Server) -> None:
    server.answer = (200, {"Content-Type": "application/json"}, b"{oops")
    with pytest.raises(ServiceRaisedError, match="broken JSON"):
        await call(EndpointService("tide", server.url), {})
    server.answer = (200, {"Content-Type": "text/plain"}, b"x" * 1001)
    with pytest.raises(NonRetryableError, match="more than 1000 bytes"):
        await call(EndpointService("tide", server.url, answer_bytes_max=1000), {})
    server.stop()
    with pytest.raises(ServiceRaisedError, match="does not answer"):
        await call(EndpointService("tide", server.url), {})
    with pytest.raises(SettingError, match="no address"):
        EndpointService("tide", "ftp://tide")
