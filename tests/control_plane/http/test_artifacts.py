"""Contents over HTTP: sent, checked, fetched in ranges, and never shown as anything that could run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.support import DEADLINE_S, eventually

from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.contents import Contents
from llama_deploy.control_plane.http.app import build_app
from llama_deploy.control_plane.http.artifact_routes import disposition
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import StoreUnavailableError
from llama_deploy.messages.contents import PART_BYTES
from llama_deploy.state_stores import MemoryStore

DATA = bytes(range(256)) * (PART_BYTES // 256) + b"the end"
HASH = hashlib.sha256(DATA).hexdigest()


async def sent(data: bytes = DATA) -> AsyncIterator[bytes]:
    for first in range(0, len(data), 100_000):
        yield data[first : first + 100_000]


async def test_a_body_is_stored_and_comes_back(http: httpx2.AsyncClient) -> None:
    posted = await http.post("/v1/artifacts", params={"name": "a.csv"}, content=sent())
    assert posted.status_code == 201
    assert posted.json() == {"$artifact": HASH, "size_bytes": len(DATA), "media_type": "text/csv", "name": "a.csv"}
    got = await http.get(f"/v1/artifacts/{HASH}", params={"name": "a.csv", "media_type": "text/csv"})
    assert got.content == DATA
    assert got.headers["etag"] == f'"{HASH}"'
    assert got.headers["content-length"] == str(len(DATA))
    assert got.headers["content-type"].startswith("text/csv")
    assert got.headers["content-disposition"].startswith('attachment; filename="a.csv"')
    assert got.headers["x-content-type-options"] == "nosniff"
    assert (await http.head(f"/v1/artifacts/{HASH}")).headers["content-length"] == str(len(DATA))


@pytest.mark.parametrize("sized", [True, False])
async def test_a_body_under_its_hash_is_checked(http: httpx2.AsyncClient, *, sized: bool) -> None:
    headers = {"content-length": str(len(DATA))} if sized else {}
    path = f"/v1/artifacts/{HASH}"
    wrong = await http.put(path, content=sent(DATA[:-1] + b"!"), headers=headers)
    assert (wrong.status_code, wrong.json()["code"]) == (400, "LD523")
    assert (await http.get(path)).status_code == 404
    short = await http.put(path, content=sent(DATA[:-1]), headers=headers)
    assert short.status_code == 400
    assert (await http.put(path, params={"offer": len(DATA)})).status_code == 404
    assert (await http.put(path, content=sent(), headers=headers)).status_code == 201
    assert (await http.put(path, params={"offer": len(DATA)})).status_code == 200
    assert (await http.put(path, params={"offer": 1})).status_code == 400
    assert (await http.put(path, content=sent(), headers=headers)).status_code in (200, 201)
    assert (await http.get(path)).content == DATA


@pytest.mark.parametrize(
    ("header", "first", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        (f"bytes={PART_BYTES - 2}-{PART_BYTES + 1}", PART_BYTES - 2, PART_BYTES + 2),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        (f"bytes={len(DATA) - 1}-", len(DATA) - 1, len(DATA)),
        ("bytes=0-999999999", 0, len(DATA)),
        ("bytes=-999999999", 0, len(DATA)),
    ],
)
async def test_a_range_is_sent_alone(http: httpx2.AsyncClient, header: str, first: int, end: int) -> None:
    await http.post("/v1/artifacts", content=sent())
    got = await http.get(f"/v1/artifacts/{HASH}", headers={"range": header})
    assert got.status_code == 206
    assert got.content == DATA[first:end]
    assert got.headers["content-range"] == f"bytes {first}-{end - 1}/{len(DATA)}"


async def test_ranges_that_cannot_be_sent(http: httpx2.AsyncClient) -> None:
    await http.post("/v1/artifacts", content=sent())
    beyond = await http.get(f"/v1/artifacts/{HASH}", headers={"range": f"bytes={len(DATA)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(DATA)}")
    for ignored in ("bytes=a-b", "bytes=9-5", "bytes=-", "lines=1-2", "bytes=0-1,5-6"):
        whole = await http.get(f"/v1/artifacts/{HASH}", headers={"range": ignored})
        assert (whole.status_code, len(whole.content)) == (200, len(DATA)), ignored
    other = await http.get(f"/v1/artifacts/{HASH}", headers={"range": "bytes=0-1", "if-range": '"other"'})
    assert other.status_code == 200
    known = await http.get(f"/v1/artifacts/{HASH}", headers={"if-none-match": f'W/"x", "{HASH}"'})
    assert (known.status_code, known.content) == (304, b"")


@pytest.mark.parametrize("hash_", ["x", "..", "0" * 63, "0" * 65, "A" * 64, "%00", "é" * 64])
async def test_what_is_no_hash_is_refused(http: httpx2.AsyncClient, hash_: str) -> None:
    for response in (await http.get(f"/v1/artifacts/{hash_}"), await http.put(f"/v1/artifacts/{hash_}", content=b"x")):
        assert response.status_code in (400, 404, 405)


async def test_a_media_type_that_is_none_is_refused(http: httpx2.AsyncClient) -> None:
    await http.post("/v1/artifacts", content=b"x")
    path = f"/v1/artifacts/{hashlib.sha256(b'x').hexdigest()}"
    assert (await http.get(path, params={"media_type": "text/html\r\nset-cookie: a=b"})).status_code == 400


@pytest.mark.parametrize("name", ["a.txt", "ü.txt", 'a"b;c%.txt', "../../etc/passwd", "a\r\nb: c", "...", "\ud800", ""])
def test_a_name_is_no_more_than_a_name(name: str) -> None:
    header = disposition(name)
    assert header.startswith("attachment; filename=")
    assert "\r" not in header
    assert "\n" not in header
    assert "/" not in header
    assert header.isascii()


async def test_the_size_of_a_body_is_limited() -> None:
    plane = ControlPlane(store=MemoryStore(), settings=EngineSettings(artifact_bytes_max=1_000))
    await plane.start()
    try:
        transport = httpx2.ASGITransport(app=build_app(plane))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE_S) as http:
            for response in (
                await http.post("/v1/artifacts", content=bytes(1_001)),
                await http.post("/v1/artifacts", content=sent(bytes(1_001))),
                await http.put(f"/v1/artifacts/{HASH}", content=bytes(1_001)),
                await http.put(f"/v1/artifacts/{HASH}", params={"offer": 1_001}),
            ):
                assert (response.status_code, response.json()["code"]) == (413, "LD208")
                assert response.json()["details"]["setting"] == "artifact_bytes_max"
            assert (await http.post("/v1/artifacts", content=bytes(1_000))).status_code == 201
    finally:
        await plane.stop()


async def test_a_page_of_another_site_stores_nothing(http: httpx2.AsyncClient) -> None:
    other, own = {"origin": "http://evil.example"}, {"origin": "http://test"}
    path = f"/v1/artifacts/{HASH}"
    assert (await http.post("/v1/artifacts", content=b"x", headers=other)).status_code == 400
    assert (await http.put(path, content=DATA, headers=other)).status_code == 400
    assert (await http.get(path)).status_code == 404
    assert (await http.post("/v1/artifacts", content=b"x", headers=own)).status_code == 201


async def test_a_client_that_dies_in_mid_upload_is_no_error_of_ours(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    content = b"x" * 10_000
    path = f"/v1/artifacts/{hashlib.sha256(content).hexdigest()}"
    _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    writer.write(
        f"PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content[:100]
    )
    await writer.drain()
    writer.transport.abort()
    await eventually(lambda: "a client broke its request off" in caplog.text)
    async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S) as http:
        assert (await http.get(path)).status_code == 404
        assert (await http.put(path, content=content)).status_code == 201
    assert "request failed" not in caplog.text
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("lost", [True, False], ids=["the store is lost", "the content is removed"])
async def test_what_the_store_gives_only_in_part_breaks_off(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, *, lost: bool
) -> None:
    data = DATA * 5
    read = Contents.read

    async def first_piece(self: Contents, hash_: str, first: int, limit: int) -> tuple[bytes, int]:
        if first and lost:
            raise StoreUnavailableError("the store cannot be reached now")
        return (b"", 0) if first else await read(self, hash_, first, limit)

    async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S) as http:
        there = (await http.post("/v1/artifacts", content=sent(data))).json()["$artifact"]
        monkeypatch.setattr(Contents, "read", first_piece)
        with pytest.raises(httpx2.RemoteProtocolError):
            await http.get(f"/v1/artifacts/{there}")
        monkeypatch.undo()
        assert (await http.get(f"/v1/artifacts/{there}")).content == data
    assert "a content breaks off" in caplog.text
    assert "request failed" not in caplog.text
    assert "Traceback" not in caplog.text
