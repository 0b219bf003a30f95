"""Peers that send too slowly, too much, or no end: they are let go of, and nobody else notices."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx2
import pytest
from tests.control_plane.http.conftest import Served
from tests.support import DEADLINE_S, eventually

from llama_deploy.client import Client
from llama_deploy.control_plane.http import protocol
from llama_deploy.control_plane.http.listener import bind
from llama_deploy.control_plane.http.server import serving
from llama_deploy.errors import ShuttingDownError

HEAD = b"POST /v1/sessions HTTP/1.1\r\nhost: 127.0.0.1\r\n"


async def connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def test_a_head_that_does_not_end_in_time_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    for sent, answer in ((b"", b""), (HEAD, b"HTTP/1.1 408 "), (HEAD + b"x-slow: 1", b"HTTP/1.1 408 ")):
        reader, writer = await connected(url)
        writer.write(sent)
        assert (await until_closed(reader)).startswith(answer)
        writer.close()


async def test_dripping_a_head_buys_no_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.5)
    reader, writer = await connected(url)

    async def drip() -> None:
        writer.write(HEAD)
        while True:
            writer.write(b"x-more: 1\r\n")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    answer = await until_closed(reader)
    assert answer.startswith(b"HTTP/1.1 408 ") or answer == b""  # what was dripped later has met a closed socket
    dripping.cancel()
    writer.close()


async def test_a_second_request_has_its_time_too(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    reader, writer = await connected(url)
    writer.write(HEAD + b"content-length: 0\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
    await asyncio.sleep(0.6)  # longer than a head may take: between requests there is none
    writer.write(HEAD + b"content-length: 0\r\n\r\n" + HEAD)
    assert (await until_closed(reader)).count(b"HTTP/1.1 201 ") == 1
    writer.close()


@pytest.mark.parametrize("line", [b"x-large: " + b"x" * 70_000, b"x: y\r\n" * 20_000])
async def test_a_head_that_is_too_large_is_refused(url: str, line: bytes) -> None:
    reader, writer = await connected(url)
    writer.write(HEAD + line + b"\r\n\r\n")
    answer = await until_closed(reader)
    assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""  # the rest of it may have met a closed socket
    writer.close()


async def test_an_address_that_is_too_large_is_refused(url: str) -> None:
    reader, writer = await connected(url)
    writer.write(b"GET /" + b"x" * 70_000)
    assert (await until_closed(reader)).startswith(b"HTTP/1.1 431 ")
    writer.close()


async def test_a_body_that_crawls_is_given_up(url: str, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_GRACE_S", 0.2)
    monkeypatch.setattr(protocol, "LOOK_S", 0.05)
    reader, writer = await connected(url)
    writer.write(HEAD + b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
    assert await until_closed(reader) == b""
    writer.close()
    async with Client(url) as client:
        assert await client.run("shout", text="still here") == "STILL HERE"


async def test_an_answer_may_take_its_time(url: str, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(protocol, "BODY_GRACE_S", 0.1)
    monkeypatch.setattr(protocol, "LOOK_S", 0.05)
    reader, writer = await connected(url)
    body = b'{"service":"gate","input":{"name":"long"}}'
    writer.write(b"POST /v1/tasks?wait_s=60 HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n")
    writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
    reading = asyncio.create_task(reader.readline())
    await asyncio.sleep(0.5)
    assert not reading.done()
    served.open("long")
    assert (await reading).startswith(b"HTTP/1.1 201 ")
    writer.close()


async def test_what_is_no_request_is_answered_and_ends(url: str) -> None:
    reader, writer = await connected(url)
    writer.write(b"hello there\r\n\r\n")
    assert (await until_closed(reader)).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_an_address_has_so_many_connections_and_this_machine_any_number(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = served.deployment.plane
    plane.engine.settings = replace(plane.engine.settings, connections_per_address_max=2)
    listener = bind("127.0.0.1", 0)
    async with serving(plane, listener):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        own = [await connected(url) for _ in range(4)]
        reader, writer = own[0]
        writer.write(HEAD + b"content-length: 0\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
        for _, one in own:
            one.close()
        monkeypatch.setattr(protocol, "is_of_this_machine", lambda _: False)
        async with Client(url) as client:  # whose WebSocket is one of them, and stays
            await client.wait(await client.submit("shout", text="a"))

            async def refused() -> bool:
                taken = [await connected(url) for _ in range(3)]
                answers = await asyncio.gather(*(_first_line(reader, writer) for reader, writer in taken))
                for _, one in taken:
                    one.close()
                return any(answer.startswith(b"HTTP/1.1 429 ") for answer in answers)

            await eventually(refused)
            assert (await client.wait(await client.submit("shout", text="b"))).output == "B"


async def _first_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(HEAD + b"content-length: 0\r\n\r\n")
    try:
        return await reader.readline()
    except ConnectionError:
        return b""


async def test_who_still_waits_when_a_stop_waits_no_longer_is_told_that_it_stops(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        asked.set()
        await asyncio.get_running_loop().create_future()

    plane = served.deployment.plane
    monkeypatch.setattr(plane.store, "list_tasks", never)
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S, verify=False) as client:
        async with serving(plane, listener):
            asking = asyncio.create_task(client.get("/v1/tasks"))
            await asked.wait()
        answer = await asking
    assert (answer.status_code, answer.json()["code"]) == (503, ShuttingDownError.code)
