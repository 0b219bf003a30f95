"""Folders of versions that nobody speaks of go; one that is made meanwhile stays, however the two meet."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.apiserver.deployments.api_server import write_deployment
from tests.support import DEADLINE_S

from llama_deploy.apiserver.deployments.server import DeploymentServer
from llama_deploy.apiserver.deployments.versions import Offer, Version, Versions
from llama_deploy.runtime.lifeline import Guard


@pytest.fixture
def offer(tmp_path: Path) -> Offer:
    file = write_deployment(tmp_path / "code", "made")
    return Offer(source=file.read_bytes(), folder=file.parent)


@pytest.fixture
def guard() -> Iterator[Guard]:
    guard = Guard()
    yield guard
    guard.stop()


async def test_a_version_that_was_just_put_in_its_place_stays(
    tmp_path: Path, offer: Offer, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, remove = Versions(tmp_path / "data", guard), shutil.rmtree
    cleaning, pruned = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(folder: Path, **options: Any) -> None:
        if Path(folder).parent.name == "staging":
            loop.call_soon_threadsafe(cleaning.set)
            assert pruned.wait(DEADLINE_S)
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", slow)
    making = asyncio.create_task(versions.make(offer))
    await cleaning.wait()
    versions.prune(set())
    pruned.set()
    version = await making
    assert versions.open("made", version.digest).tree.is_dir()
    versions.prune(set())
    assert not version.folder.exists(), "nobody has spoken of it since"


async def test_a_version_that_is_made_while_another_deployment_is_deleted_stays(
    tmp_path: Path, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DeploymentServer(tmp_path / "data") as server:
        server.records.put_version("gone", "0123")
        server._place("gone")
        loop, here, prune = asyncio.get_running_loop(), threading.current_thread(), server.versions.prune

        def meanwhile(kept: set[tuple[str, str]]) -> None:
            if threading.current_thread() is not here:
                found.append(asyncio.run_coroutine_threadsafe(enter(), loop).result(DEADLINE_S))
            prune(kept)

        async def enter() -> Version:
            return await made.__aenter__()

        monkeypatch.setattr(server.versions, "prune", meanwhile)
        made, found = server._made(offer), list[Version]()
        await server.delete("gone")
        version = found[0] if found else await enter()
        assert version.tree.is_dir()
        await made.__aexit__(None, None, None)
