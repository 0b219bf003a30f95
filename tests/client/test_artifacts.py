"""Artifacts with the clients: uploaded from anything, passed to tasks, fetched from results, over every transport."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.apiserver import Deployment
from llama_deploy.client import Client, SyncClient
from llama_deploy.client.artifact_calls import PIECE_BYTES
from llama_deploy.errors import ArtifactCorruptError, ArtifactNotFoundError, InvalidRequestError
from llama_deploy.services import ServiceContext, service
from llama_deploy.types.artifacts import Artifact

BIG = bytes(range(251)) * (PIECE_BYTES // 251 * 2)
"""Two pieces, nearly."""


@service
async def reverse(data: Artifact, context: ServiceContext) -> dict[str, Any]:
    made = await context.save((await data.read())[::-1], name=f"r-{data.name}")
    context.stream({"made": made})
    return {"made": made, "all": [made, 1]}


@pytest.fixture(params=["socket", "in process"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    port = 0 if request.param == "socket" else None
    async with Deployment(services=[reverse], store=":memory:", port=port, quiet=True) as deployment:
        if port is None:
            yield deployment.client
        else:
            async with Client(deployment.url) as made:
                yield made


async def test_a_file_goes_in_and_a_file_comes_out(client: Client, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(BIG)
    given = await client.upload(source)
    assert (given.name, given.media_type, given.size_bytes) == ("in.csv", "text/csv", len(BIG))
    result = await client.run("reverse", data=given)
    made = result["made"]
    assert isinstance(made, Artifact)
    assert result["all"] == [made, 1]
    assert await made.read() == BIG[::-1]
    (tmp_path / "out").mkdir()
    written = await client.download(made, tmp_path / "out")
    assert written == tmp_path / "out" / "r-in.csv"
    assert written.read_bytes() == BIG[::-1]
    assert list((tmp_path / "out").iterdir()) == [written]
    assert b"".join([chunk async for chunk in client.chunks(made)]) == BIG[::-1]
    assert await asyncio.to_thread(lambda: made.open().read()) == BIG[::-1]
    with pytest.raises(InvalidRequestError, match="would block"):
        made.open()


async def test_everything_that_has_bytes_can_be_uploaded(client: Client, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"same")

    async def later() -> AsyncIterator[bytes]:
        yield b"sa"
        yield b"me"

    sources: list[Any] = [b"same", bytearray(b"same"), memoryview(b"same"), str(tmp_path / "f"), tmp_path / "f"]
    sources += [io.BytesIO(b"same"), iter([b"sa", b"me"]), [b"same"], later()]
    stored = [await client.upload(source, name="n", media_type="text/plain") for source in sources]
    assert len(set(stored)) == 1
    assert await client.read(stored[0]) == b"same"
    for wrong in (5, ["text"], None):
        with pytest.raises(TypeError):
            await client.upload(wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        await client.upload(tmp_path / "none")


async def test_an_empty_content_is_one(client: Client, tmp_path: Path) -> None:
    empty = await client.upload(b"", name="e")
    assert await client.read(empty) == b""
    assert (await client.download(empty, tmp_path / "e")).read_bytes() == b""


async def test_outputs_of_a_type_and_events_can_be_read(client: Client) -> None:
    given = await client.upload(b"abc", name="x")
    task_id = await client.submit("reverse", data=given)
    output = await client.result(task_id, output_type=dict[str, Any])
    assert output["made"]["$artifact"]
    events = [event.data async for event in client.stream(task_id)]
    assert await events[0]["made"].read() == b"cba"


async def test_what_is_not_there_is_told(client: Client, tmp_path: Path) -> None:
    missing = Artifact(hash="0" * 64, size_bytes=3)
    with pytest.raises(ArtifactNotFoundError):
        await client.download(missing, tmp_path / "x")
    assert not list(await asyncio.to_thread(tmp_path.iterdir))
    with pytest.raises(ArtifactNotFoundError):
        await client.run("reverse", data=missing)
    with pytest.raises(InvalidRequestError, match="cannot be read here"):
        await missing.read()


async def test_what_was_damaged_is_not_handed_out(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = await client.upload(b"precious")

    async def damaged(hash: str, first: int, limit: int) -> tuple[bytes, int]:  # noqa: A002 - the contract
        return b"worthles", 8

    monkeypatch.setattr(client._source(), "piece", damaged)
    with pytest.raises(ArtifactCorruptError):
        await client.download(given, tmp_path / "x")
    assert not list(await asyncio.to_thread(tmp_path.iterdir))


async def test_a_name_never_leads_out_of_the_folder(client: Client, tmp_path: Path) -> None:
    given = await client.upload(b"x", name="../../evil")
    assert await client.download(given, tmp_path) == tmp_path / "evil"
    given = await client.upload(b"x", name="..")
    assert await client.download(given, tmp_path) == tmp_path / given.hash


async def test_the_client_for_blocking_code(tmp_path: Path) -> None:
    async with Deployment(services=[reverse], store=":memory:", port=0, quiet=True) as deployment:

        def use() -> None:
            with SyncClient(deployment.url) as client:
                given = client.upload(iter([b"a", b"b"]), name="x")
                made = client.run("reverse", data=given)["made"]
                assert client.read(made) == b"ba"
                assert b"".join(client.chunks(made)) == b"ba"
                assert client.download(made, tmp_path).read_bytes() == b"ba"
                with made.open() as file:
                    assert file.read() == b"ba"

        await asyncio.to_thread(use)
