"""A server that asks for tokens, over real sockets: who is let in, what they are told, what is written down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.control_plane.http.conftest import Served
from tests.support import DEADLINE_S, eventually
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llama_deploy.client import Client
from llama_deploy.control_plane.http.access.guard import HEADERS, Access
from llama_deploy.control_plane.http.listener import bind
from llama_deploy.control_plane.http.server import serving
from llama_deploy.errors import ForbiddenError, RateLimitedError, TaskNotFoundError, UnauthenticatedError
from llama_deploy.runtime.credentials import Credentials
from llama_deploy.services import serve_services, service
from llama_deploy.types import TaskState
from llama_deploy.types.access import AccessSettings, AuditSettings, Scope, Token, digest_of, with_implied
from llama_deploy.types.limits import RateLimit

TEXTS = {scope: f"token-of-{scope.value}-0123456789" for scope in Scope}
SLOW = "token-with-a-rate-0123456789"
WHISPERS = "token-of-one-service-0123456789"


def token(name: str, text: str, *scopes: Scope, rate: RateLimit | None = None) -> Token:
    return Token(name=name, digest=digest_of(text), scopes=with_implied(scopes), rate=rate)


class Door:
    """A server with tokens, its access, and its audit log."""

    def __init__(self, url: str, access: Access, audit: Path) -> None:
        self.url, self.access, self._audit = url, access, audit

    def audited(self) -> list[dict[str, Any]]:
        self.access.audit.flush()
        return [json.loads(line) for line in self._audit.read_text().splitlines()] if self._audit.exists() else []

    def client(self, scope: Scope | None) -> Client:
        return Client(self.url, token=TEXTS[scope] if scope else None, timeout_s=DEADLINE_S)


@pytest.fixture
async def door(served: Served, tmp_path: Path) -> AsyncIterator[Door]:
    audit = tmp_path / "audit" / "log.jsonl"
    tokens = [token(scope.value, TEXTS[scope], scope) for scope in Scope]
    tokens.append(replace(token("whispers", WHISPERS, Scope.SERVE), services=frozenset({"whisper"})))
    tokens.append(token("slow", SLOW, Scope.RUN, rate=RateLimit(count=3, seconds=3600)))
    settings = AccessSettings(tokens=tuple(tokens), audit=AuditSettings(file=audit))
    access = Access(settings)
    listener = bind("127.0.0.1", 0)
    async with serving(served.deployment.plane, listener, access=access):
        yield Door(f"http://127.0.0.1:{listener.getsockname()[1]}", access, audit)
    access.close()


async def test_clients_do_what_their_token_allows(door: Door) -> None:
    async with door.client(Scope.RUN) as runs:
        task_id = await runs.submit("shout", text="hello")
        assert await runs.result(task_id) == "HELLO"
        with pytest.raises(ForbiddenError) as forbidden:
            await runs.pause_service("shout")
        assert forbidden.value.details["scope"] == "deploy"
    async with door.client(Scope.READ) as reads:
        assert (await reads.wait(task_id)).output == "HELLO"
        assert [entry.seq async for entry in reads.history(task_id)]
        with pytest.raises(ForbiddenError):
            await reads.run("shout", text="hello")
        with pytest.raises(TaskNotFoundError):
            await reads.get_task("nobody")
    for scope in (None, Scope.SERVE):
        async with door.client(scope) as stranger:
            with pytest.raises(UnauthenticatedError if scope is None else ForbiddenError):
                await stranger.run("shout", text="hello")
            with pytest.raises(UnauthenticatedError if scope is None else ForbiddenError):
                await stranger.status()


async def test_refusals_say_how_to_get_in_and_show_nothing(door: Door) -> None:
    async with httpx2.AsyncClient(base_url=door.url, verify=False, timeout=DEADLINE_S) as http:
        nobody = await http.get("/v1/tasks", headers={"authorization": "Bearer wrong-wrong-wrong-wrong"})
        assert nobody.status_code == 401
        assert nobody.headers["www-authenticate"] == 'Bearer realm="llama_deploy"'
        assert nobody.headers["content-type"] == "application/problem+json"
        assert nobody.json()["code"] == "LD250"
        assert "wrong-wrong" not in nobody.text + str(door.audited())
        forbidden = await http.get("/v1/backup", headers={"authorization": f"Bearer {TEXTS[Scope.RUN]}"})
        assert (forbidden.status_code, forbidden.json()["code"]) == (403, "LD251")
        assert 'error="insufficient_scope", scope="admin"' in forbidden.headers["www-authenticate"]
        in_the_url = await http.get(f"/v1/tasks?token={TEXTS[Scope.READ]}")
        assert in_the_url.status_code == 401
        assert TEXTS[Scope.READ] not in str(door.audited())
        assert (await http.get("/healthz")).status_code == 200


async def test_every_answer_has_the_headers_that_browsers_heed(door: Door) -> None:
    async with httpx2.AsyncClient(base_url=door.url, verify=False, timeout=DEADLINE_S) as http:
        known = {"authorization": f"Bearer {TEXTS[Scope.READ]}"}
        for answer in (await http.get("/v1/status", headers=known), await http.get("/v1/status"), await http.get("/x")):
            for name, value in HEADERS:
                assert answer.headers[name.decode()] == value.decode()
            assert "server" not in answer.headers
            assert "access-control-allow-origin" not in answer.headers


async def test_a_body_is_not_read_before_it_is_known_who_sends_it(door: Door) -> None:
    host, _, port = door.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /v1/tasks HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1000\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_a_rate_is_told_with_when_to_come_again(door: Door) -> None:
    async with httpx2.AsyncClient(base_url=door.url, verify=False, timeout=DEADLINE_S) as http:
        answers = [await http.get("/v1/status", headers={"authorization": f"Bearer {SLOW}"}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert 3500 < int(answers[-1].headers["retry-after"]) <= 3600
        assert answers[-1].json()["code"] == "LD252"
    async with Client(door.url, token=SLOW, wait_when_full=False) as client:
        with pytest.raises(RateLimitedError):
            await client.submit("shout", text="one too many")


async def test_a_rate_counts_the_operations_of_a_connection(door: Door) -> None:
    async with Client(door.url, token=SLOW, wait_when_full=False) as client:
        await client.submit("shout", text="1")  # with the connection itself the second
        await client.submit("shout", text="2")
        with pytest.raises(RateLimitedError):
            await client.submit("shout", text="3")


async def test_what_is_done_is_written_down(door: Door) -> None:
    async with door.client(Scope.ADMIN) as client:
        task_id = await client.submit("shout", text="hello")
        await client.wait(task_id)
        await client.pause_service("shout")
        await client.resume_service("shout")
        await client.status()
    async with door.client(None) as stranger:
        with pytest.raises(UnauthenticatedError):
            await stranger.status()
    told = door.audited()
    assert all(set(line) == {"at", "who", "what", "target", "from", "outcome"} for line in told)
    assert [(line["who"], line["what"], line["target"], line["outcome"]) for line in told] == [
        ("admin", "submit", task_id, "taken"),
        ("admin", "POST", "/v1/services/shout/pause", "200"),
        ("admin", "POST", "/v1/services/shout/resume", "200"),
        ("unknown", "GET", "/v1/status", "401 LD250"),
    ]
    assert {line["from"] for line in told} == {"127.0.0.1"}
    assert told[0]["at"].endswith("Z")


async def test_what_is_recorded_names_the_token(door: Door) -> None:
    async with door.client(Scope.RUN) as client:
        task_id = await client.submit("gate", name="by")
        await client.cancel(task_id, by="alice")
        told = [entry.model_dump_json() async for entry in client.history(task_id)]
        assert any("alice (token run)" in line for line in told)
        task_id = await client.submit("gate", name="by")
        await client.cancel(task_id)
        told = [entry.model_dump_json() async for entry in client.history(task_id)]
        assert any('"token run"' in line for line in told)


@pytest.mark.parametrize("route", ["/sessions/s/tasks/{}/send_event", "/deployments/default/tasks/{}/events"])
async def test_an_event_of_a_published_client_names_the_token(door: Door, route: str) -> None:
    async with door.client(Scope.RUN) as client, httpx2.AsyncClient(base_url=door.url, timeout=DEADLINE_S) as http:
        await client.create_session("s")
        task_id = await client.submit("person", input="?", session_id="s")
        async for entry in client.history(task_id, follow=True):
            if entry.state is TaskState.INPUT_REQUIRED:
                break
        event = {"service_id": "person", "event_obj_str": '{"a": 1}'}
        headers = {"authorization": f"Bearer {TEXTS[Scope.RUN]}"}
        assert (await http.post(route.format(task_id), json=event, headers=headers)).status_code == 200
        await client.result(task_id)
        told = [entry.model_dump_json() async for entry in client.history(task_id)]
        assert any('"token run"' in line for line in told)


async def test_tokens_change_while_it_runs_and_connections_of_old_ones_end(door: Door) -> None:
    settings = door.access.settings
    async with door.client(Scope.RUN) as client, door.client(Scope.READ) as other:
        task_id = await client.submit("gate", name="one")
        waiting = asyncio.create_task(client.wait(task_id))
        follows = asyncio.create_task(other.wait(task_id))
        await eventually(lambda: len(door.access.connections) == 2)
        door.access.replace(replace(settings, tokens=tuple(t for t in settings.tokens if t.name != "run")))
        with pytest.raises(UnauthenticatedError):
            await waiting
        assert not follows.done()
        follows.cancel()
    assert "revoked" in [line["outcome"] for line in door.audited()]


@pytest.mark.parametrize("times", [1, 2])
async def test_the_closing_says_why(door: Door, times: int) -> None:
    url = f"ws{door.url.removeprefix('http')}/v1/connect/client"
    async with connect(
        url, open_timeout=DEADLINE_S, additional_headers={"authorization": f"Bearer {TEXTS[Scope.READ]}"}
    ) as socket:
        await eventually(lambda: door.access.connections)
        for _ in range(times):  # the tokens may have changed once more before the first change has come to it
            door.access.replace(replace(door.access.settings, tokens=door.access.settings.tokens[1:]))
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (1008, "the token is not valid any more")


async def test_a_token_in_a_file_is_read_for_each_connection(door: Door, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TEXTS[Scope.READ] + "\n")
    async with Client(door.url, credentials=Credentials(token_file=file)) as client:
        assert await client.status()
        file.write_text("changed-changed-changed")
        with pytest.raises(UnauthenticatedError):
            await client.status()


async def test_instances_need_a_token_that_serves(door: Door) -> None:
    @service
    async def whisper(text: str) -> str:
        return text.lower()

    stop = asyncio.Event()
    serves = asyncio.create_task(
        serve_services([whisper], control_plane_url=door.url, token=TEXTS[Scope.SERVE], stop=stop, handle_signals=False)
    )
    async with door.client(Scope.RUN) as client:
        assert await client.run("whisper", text="HELLO", wait_for_service=True) == "hello"
    stop.set()
    await serves
    for text, error in ((None, UnauthenticatedError), (TEXTS[Scope.RUN], ForbiddenError)):
        with pytest.raises(error):
            await serve_services([whisper], control_plane_url=door.url, token=text, handle_signals=False)


async def test_a_token_for_some_services_serves_those_and_no_other(door: Door) -> None:
    @service
    async def whisper(text: str) -> str:
        return text.lower()

    @service(name="shout")
    async def other(text: str) -> str:
        return text

    stop = asyncio.Event()
    serves = asyncio.create_task(
        serve_services([whisper], control_plane_url=door.url, token=WHISPERS, stop=stop, handle_signals=False)
    )
    async with door.client(Scope.RUN) as client:
        assert await client.run("whisper", text="HELLO", wait_for_service=True) == "hello"
        with pytest.raises(ForbiddenError, match="does not allow serving shout"):
            await serve_services([whisper, other], control_plane_url=door.url, token=WHISPERS, handle_signals=False)
        assert len((await client.get_service("shout")).instances) == 1
    stop.set()
    await serves
    async with httpx2.AsyncClient(base_url=door.url, headers={"authorization": f"Bearer {WHISPERS}"}) as http:
        named = {"service_name": "shout", "description": "mine"}
        assert (await http.post("/services/register", json=named)).status_code == 403
        assert (await http.post("/services/deregister", params={"service_name": "shout"})).status_code == 403
        assert (await http.post("/services/register", json={**named, "service_name": "whisper"})).status_code == 200


async def test_an_instance_that_was_let_in_waits_for_its_token_to_be_known_again(door: Door) -> None:
    @service
    async def whisper(text: str) -> str:
        return text.lower()

    stop, ready = asyncio.Event(), asyncio.Event()
    serves = asyncio.create_task(
        serve_services(
            [whisper],
            control_plane_url=door.url,
            token=TEXTS[Scope.SERVE],
            stop=stop,
            handle_signals=False,
            on_ready=ready.set,
        )
    )
    await ready.wait()
    settings = door.access.settings
    door.access.replace(replace(settings, tokens=tuple(t for t in settings.tokens if t.name != "serve")))
    await eventually(lambda: any(line["outcome"] == "401 LD250" for line in door.audited()))
    assert not serves.done()
    stop.set()
    await serves


@pytest.mark.parametrize("path", ["/v1/connect/client", "/v1/connect/instance"])
async def test_connections_are_refused_with_the_reason(door: Door, path: str) -> None:
    url = f"ws{door.url.removeprefix('http')}{path}"
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, open_timeout=DEADLINE_S)
    assert caught.value.response.status_code == 401
    assert json.loads(caught.value.response.body)["code"] == "LD250"


async def test_without_tokens_a_name_that_leads_here_and_pages_of_others_are_refused(live: httpx2.AsyncClient) -> None:
    assert (await live.get("/v1/status")).status_code == 200
    rebound = await live.get("/v1/status", headers={"host": "evil.example"})
    assert (rebound.status_code, rebound.json()["code"]) == (403, "LD253")
    crossed = await live.post("/v1/sessions", headers={"origin": "https://evil.example"})
    assert (crossed.status_code, crossed.json()["code"]) == (403, "LD254")


async def test_listed_origins_may_use_it_from_a_browser(served: Served) -> None:
    origin = "https://page.example.com"
    access = Access(AccessSettings(cors_origins=(origin,)))
    listener = bind("127.0.0.1", 0)
    async with (
        serving(served.deployment.plane, listener, access=access),
        httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", verify=False, timeout=DEADLINE_S
        ) as http,
    ):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        allowed = await http.options("/v1/tasks", headers=asked | {"access-control-request-headers": "authorization"})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
        assert "access-control-allow-credentials" not in allowed.headers
        answer = await http.post("/v1/sessions", headers={"origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, origin)
        other = await http.options("/v1/tasks", headers=asked | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        assert (await http.post("/v1/sessions", headers={"origin": "https://evil.example"})).status_code == 403
