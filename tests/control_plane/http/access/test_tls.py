"""TLS, and certificates of both sides, made here: who is believed, who is let in, and what people are told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.control_plane.http.conftest import Served
from tests.support import DEADLINE_S
from tests.support.certificates import Authority, Files

from llama_deploy.client import Client
from llama_deploy.control_plane.http.access.tls import renew, server_context
from llama_deploy.control_plane.http.listener import bind
from llama_deploy.control_plane.http.server import serving
from llama_deploy.errors import CannotReachError, LlamaDeployError, SettingError, TLSError
from llama_deploy.runtime.credentials import Credentials
from llama_deploy.services import serve_services, service
from llama_deploy.types.access import TLSFiles


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def files_of(server: Files, client_ca: Path | None = None) -> TLSFiles:
    return TLSFiles(certificate=server.certificate, key=server.key, client_ca=client_ca)


@asynccontextmanager
async def listening(served: Served, files: TLSFiles) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
    context = server_context(files)
    listener = bind("127.0.0.1", 0)
    async with serving(served.deployment.plane, listener, tls=context):
        yield f"https://127.0.0.1:{listener.getsockname()[1]}", context


async def refusal(url: str, credentials: Credentials) -> list[CannotReachError]:
    """What is raised on the connection, and over HTTP."""
    found = []
    async with Client(url, credentials=credentials, timeout_s=DEADLINE_S) as client:
        for work in (client.run("shout", text="x"), client.status()):
            with pytest.raises(CannotReachError) as caught:
                await work
            found.append(caught.value)
    return found


async def test_a_client_that_believes_the_authority_gets_through(served: Served, authority: Authority) -> None:
    async with listening(served, files_of(authority.sign("server", "127.0.0.1"))) as (url, _):
        async with Client(url, credentials=Credentials(ca_file=authority.file)) as client:
            assert await client.run("shout", text="hello") == "HELLO"
            assert (await client.status())["ready"]
        async with Client(url, credentials=Credentials(verify=False)) as careless:
            assert await careless.run("shout", text="hello") == "HELLO"


async def test_who_does_not_believe_it_is_told_why(served: Served, authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    for certificate, credentials, why in (
        (authority.sign("one", "127.0.0.1"), Credentials(), "local issuer"),
        (authority.sign("two", "127.0.0.1"), Credentials(ca_file=other.file), "local issuer"),
        (authority.sign("three", "elsewhere.example"), Credentials(ca_file=authority.file), "mismatch"),
        (authority.sign("four", "127.0.0.1", days=-1), Credentials(ca_file=authority.file), "expired"),
    ):
        async with listening(served, files_of(certificate)) as (url, _):
            for error in await refusal(url, credentials):
                assert isinstance(error, TLSError)
                assert why in error.why
                assert "--ca-file" in error.fix


async def test_tls_to_a_server_without_it_is_told(url: str) -> None:
    for error in await refusal(url.replace("http://", "https://"), Credentials()):
        assert isinstance(error, TLSError)
        assert "does not speak TLS" in error.why


async def test_only_clients_with_a_certificate_of_the_authority_are_let_in(
    served: Served, authority: Authority, tmp_path: Path
) -> None:
    mine, strange = authority.sign("client"), Authority(tmp_path, "other").sign("stranger")
    server = files_of(authority.sign("server", "127.0.0.1"), authority.file)
    async with listening(served, server) as (url, _):

        def shows(files: Files) -> Credentials:
            return Credentials(ca_file=authority.file, certificate_file=files.certificate, key_file=files.key)

        async with Client(url, credentials=shows(mine)) as client:
            assert await client.run("shout", text="hello") == "HELLO"
            assert (await client.status())["ready"]
        for credentials in (Credentials(ca_file=authority.file), shows(strange)):
            async with Client(url, credentials=credentials, timeout_s=DEADLINE_S, reconnect_timeout_s=0.1) as stranger:
                for work in (stranger.run("shout", text="x"), stranger.status()):
                    with pytest.raises(LlamaDeployError) as caught:
                        await work
                    assert caught.value.code in {"LD322", "LD301", "LD302"}, caught.value.render()
                    reset = "reset" in caught.value.why.lower() or "broken pipe" in caught.value.why.lower()
                    assert "certificate" in caught.value.why or reset, caught.value.render()

        @service
        async def whisper(text: str) -> str:
            return text.lower()

        stop, ready = asyncio.Event(), asyncio.Event()
        serves = asyncio.create_task(
            serve_services(
                [whisper],
                control_plane_url=url,
                credentials=shows(mine),
                stop=stop,
                on_ready=ready.set,
                handle_signals=False,
            )
        )
        await ready.wait()
        stop.set()
        await serves


async def test_nothing_before_tls_1_2_is_spoken(served: Served, authority: Authority) -> None:
    context = server_context(files_of(authority.sign("server", "127.0.0.1")))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert Credentials().ssl_context().minimum_version is ssl.TLSVersion.TLSv1_2


async def test_a_new_certificate_is_shown_without_a_restart(served: Served, authority: Authority) -> None:
    async with listening(served, files_of(authority.sign("old", "elsewhere.example"))) as (url, context):
        async with Client(url, credentials=Credentials(ca_file=authority.file)) as client:
            with pytest.raises(TLSError):
                await client.status()
        renew(context, files_of(authority.sign("new", "127.0.0.1")))
        async with Client(url, credentials=Credentials(ca_file=authority.file)) as client:
            assert await client.status()


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    server = authority.sign("server", "127.0.0.1")
    other = authority.sign("other", "127.0.0.1")
    missing = tmp_path / "missing.pem"
    for files in (
        TLSFiles(certificate=missing, key=server.key),
        TLSFiles(certificate=server.certificate, key=other.key),
        TLSFiles(certificate=server.key, key=server.key),
        TLSFiles(certificate=server.certificate, key=server.key, client_ca=missing),
        TLSFiles(certificate=server.certificate, key=server.key, client_ca=server.key),
    ):
        with pytest.raises(SettingError) as caught:
            server_context(files)
        assert str(tmp_path) in caught.value.what
    context = server_context(files_of(server))
    with pytest.raises(SettingError):
        renew(context, TLSFiles(certificate=missing, key=server.key))
    for credentials in (Credentials(ca_file=missing), Credentials(certificate_file=missing)):
        with pytest.raises(SettingError):
            Client("https://127.0.0.1:1", credentials=credentials)
