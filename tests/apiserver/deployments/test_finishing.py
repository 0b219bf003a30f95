"""Tasks of several steps finish on the version that they began with: over updates, roll-backs and a killed server."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.apiserver.deployments.api_server import ApiServer, running
from tests.support import eventually
from tests.support.postgres import database_url

from llama_deploy.apiserver.deployments.finishing import Finishing
from llama_deploy.client import Client
from llama_deploy.errors import VersionNotFoundError

pytestmark = pytest.mark.slow

CODE = '''\
"""One service, for two steps, each of which says its version."""
import asyncio
from pathlib import Path
from llama_deploy import service

@service(concurrency=100)
async def work(text: str) -> str:
    if not text.startswith("/"):
        return text + " {version}"
    Path(text + ".entered").touch()
    while not Path(text).exists():
        await asyncio.sleep(0.01)
    return "{version}"
'''


def write(folder: Path, version: str, more: str = "") -> Path:
    (folder / "services.py").write_text(CODE.format(version=version))
    file = folder / "deployment.yml"
    file.write_text(
        "name: steps\nservices: {work: {import-path: 'services:work'}}\n"
        "orchestrator: {name: sequence, parameters: {nodes: {first: work, second: work}}}\n" + more
    )
    return file


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiServer]:
    """A server without deployments."""
    async with running(tmp_path_factory.mktemp("server"), "--restarts", "1") as made:
        yield made


async def begun(client: Client, gate: Path) -> str:
    """A task that is in its first step."""
    task_id = await client.submit("work", text=str(gate))
    await eventually(Path(f"{gate}.entered").exists)
    return task_id


async def finishing(server: ApiServer) -> dict[int, int]:
    """The versions that finish tasks, and how many."""
    async with server.deployments() as api:
        return {one["version"]: one["tasks"] for one in (await api.get("steps"))["finishing"]}


async def kinds(client: Client, task_id: str) -> list[str]:
    return [entry.kind async for entry in client.history(task_id)]


async def at_work(server: ApiServer) -> set[str]:
    """The versions that processes of services are of."""
    async with server.deployments() as api:
        names = [one["name"] for one in (await api.get("steps"))["processes"] if "@" in one["name"]]
    return {name.rpartition("@")[2].partition(".")[0] for name in names}


async def test_over_updates_and_a_killed_server(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    async with running(tmp_path) as server:
        await server.deploy(write(code, "one"))
        async with server.client("steps") as client:
            oldest = await begun(client, tmp_path / "a")
            view = await server.deploy(write(code, "two"))
            assert [(one["version"], one["tasks"]) for one in view["finishing"]] == [(1, 1)]
            older = await begun(client, tmp_path / "b")
            await server.deploy(write(code, "three"))
            assert await finishing(server) == {1: 1, 2: 1}
        await server.ends(signal.SIGKILL)
        for entered in ("a.entered", "b.entered"):
            (tmp_path / entered).unlink()
        await server.start()
        async with server.client("steps") as client:
            for entered in ("a.entered", "b.entered"):  # the steps begin again, where they were
                await eventually((tmp_path / entered).exists)
            assert await finishing(server) == {1: 1, 2: 1}
            (tmp_path / "c").touch()
            assert await client.run("work", text=str(tmp_path / "c")) == "three three"
            (tmp_path / "a").touch()
            assert (await client.wait(oldest)).output == "one one"
            await eventually(lambda: _is(at_work(server), {"2", "3"}))
            (tmp_path / "b").touch()
            assert (await client.wait(older)).output == "two two"
            await eventually(lambda: _is(at_work(server), {"3"}))
            assert "moved" not in [*await kinds(client, oldest), *await kinds(client, older)]
        told = [event for event in await server.events("steps") if event.startswith("finished")]
        assert told == [f"finished: version {n} has finished: no task is bound to it any more" for n in (1, 2)]


async def _is(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)


async def test_back_and_forth_and_no_longer(server: ApiServer, tmp_path: Path) -> None:
    await server.deploy(write(tmp_path, "one"))
    async with server.client("steps") as client, server.deployments() as api:
        first = await begun(client, tmp_path / "a")
        await server.deploy(write(tmp_path, "two"))
        second = await begun(client, tmp_path / "b")
        await api.rollback("steps")  # to a version whose processes still work
        assert await finishing(server) == {2: 1}
        (tmp_path / "c").touch()
        assert await client.run("work", text=str(tmp_path / "c")) == "one one"
        (tmp_path / "a").touch()
        assert (await client.wait(first)).output == "one one"
        with pytest.raises(VersionNotFoundError):
            await api.finish("steps", 1)
        await api.finish("steps")
        (tmp_path / "b").touch()
        assert (await client.wait(second)).output == "two one"
        assert await kinds(client, second) == ["submitted", "answered", "moved", "answered"]
        await eventually(lambda: _is(at_work(server), {"1"}))
        await api.delete("steps")


async def test_without_time_and_with_little(server: ApiServer, tmp_path: Path) -> None:
    await server.deploy(write(tmp_path, "one"))
    async with server.client("steps") as client, server.deployments() as api:
        first = await begun(client, tmp_path / "a")
        await server.deploy(write(tmp_path, "two"), now=True)
        assert await finishing(server) == {}
        (tmp_path / "a").touch()
        assert (await client.wait(first)).output == "one two"
        second = await begun(client, tmp_path / "b")
        await server.deploy(write(tmp_path, "three", "limits: {release-finish-within-s: 1}\n"))
        await eventually(lambda: _is(finishing(server), {}))
        (tmp_path / "b").touch()
        assert (await client.wait(second)).output == "two three"
        told = [event for event in await server.events("steps") if event.startswith("finished")]
        assert told[-1] == "finished: version 2 has no more time: 1 task goes on with version 3"
        await api.delete("steps")


@pytest.fixture
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


async def test_where_the_store_is_shared_versions_are_nobodys_and_steps_finish(
    server: ApiServer, tmp_path: Path, database: str
) -> None:
    more = f"store: {database}\ncontrol-plane: {{shared: true}}\n"
    await server.deploy(write(tmp_path, "one", more))
    async with server.client("steps") as client, server.deployments() as api:
        task_id = await begun(client, tmp_path / "a")
        assert (await server.deploy(write(tmp_path, "two", more)))["finishing"] == []
        (tmp_path / "a").touch()
        assert (await client.wait(task_id)).output == "one two"
        assert (await client.list_releases()).items == []
        await eventually(lambda: _is(at_work(server), {"2"}))
        await api.delete("steps")


class Processes:
    """Those of a deployment, by their version, and what has been done to them."""

    name = "steps"
    url = ""
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, **at_work: list[str]) -> None:
        self.at_work = {name.removeprefix("v"): names for name, names in at_work.items()}
        self.retired: list[str] = []

    def releases_at_work(self) -> dict[str, list[str]]:
        return {release: list(names) for release, names in self.at_work.items() if names}

    def retire(self, names: list[str]) -> None:
        self.retired += names
        for release, here in self.at_work.items():
            self.at_work[release] = [name for name in here if name not in names]


async def test_a_version_that_is_started_again_while_it_is_said_to_have_finished_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes = Processes(v1=["work@1"], v2=["work@2"])
    finishing = Finishing(processes, tell=lambda kind, message: None, changed=lambda: None)
    releases = {name: {"release": name, "tasks": 0, "finish_by": None} for name in ("1", "2")}
    asked: list[str] = []

    async def control_plane(method: str, path: str, *_: object, **__: object) -> dict[str, Any]:
        asked.append(f"{method} {path}")
        if method == "DELETE":
            roll_back.enter_context(finishing.starting(1))
            processes.at_work["1"].append("work@1.2")
            del releases["1"]
        return {"current": "2", "items": list(releases.values())}

    monkeypatch.setattr(finishing, "_ask", control_plane)
    with contextlib.ExitStack() as roll_back:
        await finishing.follow(2)
        finishing.watch()
        await eventually(lambda: processes.retired)
        assert processes.retired == ["work@1"]
        assert "DELETE /v1/releases/1" in asked
    await finishing.stop()
