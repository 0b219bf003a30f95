"""Copies of the store over HTTP, also where the disk or the reader fails."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support import DEADLINE_S, eventually

from llama_deploy.apiserver import Deployment
from llama_deploy.client import Client
from llama_deploy.control_plane import copies
from llama_deploy.errors import ConnectionLostError, StoreUnavailableError, TaskNotFoundError
from llama_deploy.services import service
from llama_deploy.testing.recording import entry_row, record, submission


@service
async def shout(text: str) -> str:
    """Upper case."""
    return text.upper()


def _hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*")]


async def test_the_file_comes_with_its_length_and_type(tmp_path: Path) -> None:
    async with Deployment([shout], store=tmp_path / "s.db", port=0, quiet=True) as deployment:
        await deployment.run("shout", text="x")
        async with httpx2.AsyncClient(base_url=deployment.url, timeout=DEADLINE_S) as http:
            answer = await http.get("/v1/backup")
        assert answer.headers["content-type"] == "application/vnd.sqlite3"
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert answer.content.startswith(b"SQLite format 3\0")
        assert _hidden(tmp_path) == []


async def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Deployment([shout], store=tmp_path / "s.db", port=0, quiet=True) as deployment:

        async def full(_: Path) -> None:
            raise StoreUnavailableError("no room")

        monkeypatch.setattr(deployment.plane.store, "backup", full)
        async with Client(deployment.url) as client:
            for asked in (client, deployment.client):
                with pytest.raises(StoreUnavailableError, match="no room"):
                    await asked.backup(tmp_path / "copy.db")
        assert not (tmp_path / "copy.db").exists()
        assert _hidden(tmp_path) == []


async def test_a_copy_that_breaks_off_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Deployment([shout], store=tmp_path / "s.db", port=0, quiet=True) as deployment:
        for number in range(4):
            name = f"t{number}"
            await record(deployment.plane.store, **submission(name, entry=entry_row(name, data=bytes(1_000_000))))
        monkeypatch.setattr(copies, "PIECE_BYTES", 0)
        async with Client(deployment.url) as client:
            with pytest.raises(ConnectionLostError):
                await client.backup(tmp_path / "copy.db")
        assert not (tmp_path / "copy.db").exists()
        assert _hidden(tmp_path) == []


async def test_whoever_reads_no_further_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Deployment([shout], store=tmp_path / "s.db", port=0, quiet=True) as deployment:
        for number in range(8):
            name = f"t{number}"
            await record(deployment.plane.store, **submission(name, entry=entry_row(name, data=bytes(1_000_000))))
        async with (
            httpx2.AsyncClient(base_url=deployment.url, timeout=DEADLINE_S) as http,
            http.stream("GET", "/v1/backup") as answer,
        ):
            await anext(answer.aiter_bytes(1000))
        pieces = deployment.client._transport.download("/v1/backup")
        await anext(pieces)
        await pieces.aclose()  # type: ignore[attr-defined]
        await eventually(lambda: _hidden(tmp_path) == [])
        assert await deployment.run("shout", text="x") == "X"


async def test_what_a_crash_left_of_a_copy_is_removed(tmp_path: Path) -> None:
    async with Deployment([shout], store=tmp_path / "s.db", quiet=True):
        pass
    left = tmp_path / ".s.db.abcd.backup"
    left.mkdir()
    (left / "copy").write_bytes(b"half of it")
    async with Deployment([shout], store=tmp_path / "s.db", quiet=True):
        assert not left.exists()


async def test_a_copy_of_what_is_in_memory(tmp_path: Path) -> None:
    async with Deployment([shout], store=":memory:", quiet=True) as deployment:
        await deployment.run("shout", text="x")
        await deployment.client.backup(tmp_path / "copy.db")
    connection = sqlite3.connect(tmp_path / "copy.db")
    assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (1,)
    connection.close()


async def test_a_task_that_is_removed_as_it_is_exported_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Deployment([shout], store=":memory:", quiet=True) as deployment:
        await deployment.run("shout", text="x", task_id="t")
        plane = deployment.plane
        get = plane.engine.cache.get

        async def found(task_id: str) -> Any:
            monkeypatch.undo()
            entry = await get(task_id)
            await plane.bulk.delete(task_id)
            return entry

        monkeypatch.setattr(plane.engine.cache, "get", found)
        with pytest.raises(TaskNotFoundError):
            await plane.exports.one("t")


async def test_a_copy_whose_asker_gives_up_as_it_is_opened_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Deployment([shout], store=tmp_path / "s.db", quiet=True) as deployment:
        made, gone = threading.Event(), threading.Event()
        mkdtemp = tempfile.mkdtemp

        def make(**where: Any) -> str:
            folder: str = mkdtemp(**where)
            made.set()
            gone.wait(DEADLINE_S)
            return folder

        monkeypatch.setattr(tempfile, "mkdtemp", make)
        opening = asyncio.ensure_future(deployment.plane.copies.open())
        await eventually(made.is_set)
        opening.cancel()
        await asyncio.sleep(0)
        gone.set()
        await asyncio.gather(opening, return_exceptions=True)
        await eventually(lambda: _hidden(tmp_path) == [])
