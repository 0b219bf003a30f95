"""Control planes that ask for tokens, and what they let each other do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.control_plane.served_planes import SETTINGS, served_planes
from tests.support import DEADLINE_S, eventually
from tests.support.certificates import Authority

from llama_deploy.client import Client
from llama_deploy.control_plane.http.access.tls import server_context
from llama_deploy.errors import (
    ForbiddenError,
    InvalidRequestError,
    LimitExceededError,
    PeerRefusedError,
    PlaneNotAnsweringError,
)
from llama_deploy.runtime.credentials import (
    CA_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    TOKEN_VARIABLE,
    Credentials,
)
from llama_deploy.types import Origin, TaskOptions
from llama_deploy.types.access import AccessSettings, Scope, TLSFiles, Token, digest_of, with_implied

TEXTS = {scope: f"{scope.value}-0123456789-0123456789" for scope in Scope}
ACCESS = AccessSettings(
    tokens=tuple(
        Token(name=scope.value, digest=digest_of(text), scopes=with_implied([scope])) for scope, text in TEXTS.items()
    )
)


@pytest.mark.slow
async def test_control_planes_show_a_token_of_their_own_and_hand_on_that_of_the_client(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TEXTS[Scope.ADMIN])
    async with served_planes(store_url, "a", "b", access=ACCESS) as made:
        here, there = made["a"], made["b"]
        async with Client(here.url, token=TEXTS[Scope.RUN], timeout_s=DEADLINE_S) as runs:
            task_id = there.led()
            assert await runs.run("tell", events=3, task_id=task_id) == 3
            assert [event.data async for event in runs.stream(task_id)] == [0, 1, 2]
            assert (await runs.get_task(task_id)).task_id == task_id
            with pytest.raises(ForbiddenError):  # what the client may do is the client's, wherever it is done
                await runs.delete_task(task_id)
        async with Client(here.url, token=TEXTS[Scope.READ], timeout_s=DEADLINE_S) as reads:
            assert (await reads.wait(task_id)).result == "3"
            with pytest.raises(ForbiddenError):
                await reads.submit("echo", value=1, task_id=there.led())
        async with Client(here.url, token=TEXTS[Scope.ADMIN], timeout_s=DEADLINE_S) as may_all:
            answer = await may_all.bulk("delete", f"id:{task_id}")
            assert [item.problem for item in answer.items] == [None]


@pytest.mark.slow
async def test_one_without_a_token_says_what_is_missing(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    async with served_planes(store_url, "a", "b", access=ACCESS) as made:
        here, there = made["a"], made["b"]
        async with Client(here.url, token=TEXTS[Scope.ADMIN], timeout_s=DEADLINE_S) as client:
            assert await client.run("echo", value=1, task_id=here.led()) == 1
            for call in (client.run("echo", value=1, task_id=there.led()), client.submit("echo", task_id=there.led())):
                with pytest.raises(PeerRefusedError, match="does not let this one in"):
                    await call
            assert (await client.create_session(there.led())).task_count == 0, "a request bears the client's own token"


@pytest.mark.slow
async def test_only_a_token_for_all_may_ask_on_behalf_of_others(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TEXTS[Scope.RUN])
    async with (
        served_planes(store_url, "a", "b", access=ACCESS) as made,
        Client(made["a"].url, token=TEXTS[Scope.RUN], timeout_s=DEADLINE_S) as client,
    ):
        with pytest.raises(PeerRefusedError, match="admin"):
            await client.run("echo", value=1, task_id=made["b"].led())


@pytest.mark.slow
async def test_control_planes_speak_tls_with_certificates_and_tokens_of_both_sides(
    store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An authority of one's own, a certificate that each shows to the others, and a token: all from the environment."""
    authority = Authority(tmp_path)
    server, mine = authority.sign("server", "127.0.0.1"), authority.sign("client")
    tls = server_context(TLSFiles(certificate=server.certificate, key=server.key, client_ca=authority.file))
    environment = {CA_VARIABLE: authority.file, CERTIFICATE_VARIABLE: mine.certificate, KEY_VARIABLE: mine.key}
    for name, value in {**environment, TOKEN_VARIABLE: TEXTS[Scope.ADMIN]}.items():
        monkeypatch.setenv(name, str(value))
    shown = Credentials(ca_file=authority.file, certificate_file=mine.certificate, key_file=mine.key)
    async with served_planes(store_url, "a", "b", access=ACCESS, tls=tls) as made:
        here, there = made["a"], made["b"]
        assert there.url.startswith("https://")
        async with Client(here.url, token=TEXTS[Scope.ADMIN], credentials=shown, timeout_s=20) as client:
            task_id = there.led()
            assert await client.run("tell", events=3, task_id=task_id) == 3  # on the connection that clients share
            assert [event.data async for event in client.stream(task_id)] == [0, 1, 2]
            assert (await client.get_task(task_id)).task_id == task_id  # passed on
            assert (await client.get_queue("echo")).missing == []  # asked of all
            answer = await client.bulk("delete", f"id:{task_id}")  # asked by the control plane itself
            assert [item.problem for item in answer.items] == [None]


@pytest.mark.slow
async def test_one_that_does_not_believe_the_others_says_so_at_once(
    store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(CA_VARIABLE, raising=False)
    authority = Authority(tmp_path)
    server = authority.sign("server", "127.0.0.1")
    tls = server_context(TLSFiles(certificate=server.certificate, key=server.key))
    async with served_planes(store_url, "a", "b", tls=tls) as made:
        here, there = made["a"], made["b"]
        async with Client(here.url, credentials=Credentials(ca_file=authority.file), timeout_s=20) as client:
            assert await client.run("echo", value=1, task_id=here.led()) == 1
            calls = (
                client.run("echo", value=1, task_id=there.led()),
                client.create_session(there.led()),
                client.status(control_plane="b"),
            )
            for call in calls:
                with pytest.raises((PeerRefusedError, PlaneNotAnsweringError)) as caught:
                    await call
                assert "certificate is not believed" in caught.value.why
            (missing,) = (await client.get_queue("echo")).missing
            assert "certificate is not believed" in missing.why


@pytest.mark.slow
async def test_streams_are_counted_where_clients_connect(store_url: str) -> None:
    two = replace(SETTINGS, streams_per_client_max=2)
    async with served_planes(store_url, "a", "b", settings=two) as made:
        task_id = made["b"].led()
        clients = [Client(made["a"].url, timeout_s=DEADLINE_S) for _ in range(3)]
        await clients[0].submit("tell", events=10, gate="g", task_id=task_id)
        reading = [asyncio.create_task(_count(client, task_id)) for client in clients for _ in range(2)]
        await eventually(lambda: len(made["b"].plane.engine.cache.tasks[task_id].watchers) >= 6)
        with pytest.raises(LimitExceededError, match="follows 2"):
            await _count(clients[0], task_id)
        made.gate("g").set()
        assert await asyncio.gather(*reading) == [10] * 6
        for client in clients:
            await client.close()


async def _count(client: Client, task_id: str) -> int:
    return len([event async for event in client.stream(task_id)])


@pytest.mark.slow
async def test_a_client_cannot_say_what_only_control_planes_know(store_url: str) -> None:
    async with served_planes(store_url, "a", "b") as made, Client(made["a"].url, timeout_s=DEADLINE_S) as client:
        of_child = TaskOptions(origin=Origin(kind="child", task_id="x", step_id="x:1", depth=1))
        of_schedule = TaskOptions(origin=Origin(kind="schedule", schedule="s"))
        for options in (of_child, of_schedule):
            for served in made.planes.values():
                with pytest.raises(InvalidRequestError):
                    await client.submit("echo", value=1, task_id=served.led(), options=options)
