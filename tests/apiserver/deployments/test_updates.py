"""One version after another on an API server, under load: nothing is lost, and what began ends where it began."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.apiserver.deployments.api_server import ApiServer, running, write_deployment
from tests.support import PROCESS_S, eventually

from llama_deploy.errors import DeploymentFailedError, LlamaDeployError, VersionNotFoundError

pytestmark = pytest.mark.slow

TASKS = 300


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiServer]:
    """A server without deployments."""
    async with running(tmp_path_factory.mktemp("server"), "--restarts", "1", "--start-timeout", "40") as made:
        yield made


async def test_an_update_under_load_loses_no_task_and_what_began_ends_where_it_began(
    server: ApiServer, tmp_path: Path
) -> None:
    await server.deploy(write_deployment(tmp_path, "busy", says="first ", gate=True))
    async with server.client("busy") as client, server.deployments() as api:
        path = str(tmp_path / "open")
        begun = await asyncio.gather(*(client.submit("gate", path=path) for _ in range(TASKS)))
        await eventually((tmp_path / "open.entered").exists, PROCESS_S)

        async def all_run() -> bool:
            return (await client.get_service("gate")).running == TASKS

        await eventually(all_run, PROCESS_S)
        plane = (await api.get("busy"))["processes"][0]
        write_deployment(tmp_path, "busy", says="second ", gate=True)
        answers: list[str] = []
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                answers.append(await client.run("tell", text=""))

        asking = asyncio.create_task(keep_asking())
        view = await server.deploy(tmp_path / "deployment.yml")
        assert (view["version"], view["processes"][0]) == (2, plane), "the control plane is the same process"
        await eventually(lambda: "second " in answers, PROCESS_S)
        stop.set()
        await asking
        assert (await client.get_service("gate")).running == TASKS, "they are still where they began"
        later = await asyncio.gather(*(client.submit("gate", path=path) for _ in range(20)))
        (tmp_path / "open").touch()
        results = await asyncio.gather(*(client.wait(task_id) for task_id in begun))
        assert Counter(result.output for result in results) == {"first ": TASKS}
        assert {(await client.wait(task_id)).output for task_id in later} == {"second "}
        first_new = answers.index("second ")
        assert set(answers[:first_new]) <= {"first "}

        async def old_gone() -> bool:
            return [process["name"] for process in (await api.get("busy"))["processes"]] == [
                "control-plane",
                "gate/1@2",
                "tell/1@2",
            ]

        await eventually(old_gone, PROCESS_S)
        await api.rollback("busy")
        assert await client.run("tell", text="back") == "first back"
        await api.rollback("busy", 2)
        assert await client.run("tell", text="forth") == "second forth"
        with pytest.raises(VersionNotFoundError):
            await api.rollback("busy", 7)
        await api.delete("busy")


async def test_a_version_that_does_not_start_leaves_the_one_before_at_work(server: ApiServer, tmp_path: Path) -> None:
    file = write_deployment(tmp_path, "steady", says="good ")
    await server.deploy(file)
    async with server.client("steady") as client, server.deployments() as api:
        (tmp_path / "services.py").write_text("raise RuntimeError('not today')\n")
        with pytest.raises(DeploymentFailedError) as failed:
            await server.deploy(file)
        assert "version 1 goes on" in failed.value.what
        assert "RuntimeError: not today" in failed.value.why
        view = await api.get("steady")
        assert (view["state"], view["version"], len(view["processes"])) == ("running", 1, 2)
        assert [(one["version"], one["state"]) for one in await api.versions("steady")] == [
            (2, "failed"),
            (1, "proved"),
        ]
        assert await client.run("tell", text="still") == "good still"
        # what concerns the control plane is refused before it is touched
        write_deployment(tmp_path, "steady", more="orchestrator: 'services:Nothing'\n")
        with pytest.raises(DeploymentFailedError) as refused:
            await server.deploy(file)
        assert "there is no `Nothing`" in refused.value.why
        plane = (await api.get("steady"))["processes"][0]
        assert plane == view["processes"][0]
        # and one that starts has another control plane, over the same tasks
        write_deployment(tmp_path, "steady", says="better ", more="limits: {attempts-max: 7}\n")
        await server.deploy(file)
        assert (await api.get("steady"))["processes"][0]["pid"] != plane["pid"]
        assert await client.run("tell", text="on") == "better on"
        assert len([task async for task in client.list_tasks()]) == 2
        await api.delete("steady")


async def test_replicas_come_and_go_and_stay_over_versions(server: ApiServer, tmp_path: Path) -> None:
    file = write_deployment(tmp_path, "wide")
    await server.deploy(file)
    async with server.client("wide") as client, server.deployments() as api:

        async def instances() -> int:
            return len((await client.get_service("tell")).instances)

        async def are(count: int) -> None:
            async def so_many() -> bool:
                return await instances() == count

            await eventually(so_many, PROCESS_S)

        view = await api.scale("wide", "tell", 3)
        assert view["services"][0] == {"name": "tell", "replicas": 3, "ready": 3}
        assert await instances() == 3
        await api.scale("wide", "tell", 2)
        await are(2)
        write_deployment(tmp_path, "wide", says="more ")
        await server.deploy(file)
        await are(2)
        await api.scale("wide", "tell", None)
        await are(1)
        assert (await server.ask("POST", "/v1/deployments/wide/scale", json={"service": "tel", "replicas": 2})).json()[
            "what"
        ] == "wide has no service 'tel' (did you mean `tell`?)"
        refused = await server.ask("POST", "/v1/deployments/wide/scale", json={"service": "tell", "replicas": 0})
        assert refused.status_code == 400
        await api.delete("wide")


async def test_logs_and_events_are_told_as_they_come(server: ApiServer, tmp_path: Path) -> None:
    file = write_deployment(tmp_path, "loud")
    with (tmp_path / "services.py").open("a") as code:
        code.write("\n@service\nasync def say(text: str) -> None:\n    print(text, flush=True)\n")
    file.write_text(file.read_text() + "  say: {import-path: 'services:say'}\n")
    await server.deploy(file)
    async with server.client("loud") as client, server.deployments() as api, server.deployments() as other:
        lines, events = api.logs("loud", follow=True), other.events("loud", follow=True)
        await client.run("say", text="hear me")
        async with asyncio.timeout(PROCESS_S):
            while "[say/1@1]" not in (line := await anext(lines)):
                pass
            assert re.search(r"Z \[say/1@1\] hear me$", line)
            await client.run("say", text="and me")
            assert (await anext(lines)).endswith("[say/1@1] and me")
            assert [(await anext(events))["kind"] for _ in range(2)] == ["created", "ready"]
            pid = next(one["pid"] for one in (await api.get("loud"))["processes"] if one["name"] == "say/1@1")
            os.kill(pid, signal.SIGKILL)
            while "killed by SIGKILL" not in (event := await anext(events))["message"]:
                pass
            assert event["kind"] == "restarting"
            await other.delete("loud")
            assert [event async for event in events][-1]["kind"] == "deleting", "it ends with the deployment"
            assert [line async for line in lines], "and so does its log"


async def test_what_would_change_is_told_and_nothing_changes(server: ApiServer, tmp_path: Path) -> None:
    file = write_deployment(tmp_path, "same", says="old ")
    assert (await server.deploy(file, dry_run=True))["text"] == "same is new, with the services tell"
    await server.deploy(file)
    assert (await server.deploy(file, dry_run=True))["text"] == "same would not change"
    assert (await server.deploy(file))["changed"] is False
    write_deployment(tmp_path, "same", says="new ", more="limits: {attempts-max: 7}\n")
    (tmp_path / "added.py").write_text("x = 1\n")
    told = await server.deploy(file, dry_run=True)
    assert told["changes"]["files"] == {"added.py": "added", "deployment.yml": "changed", "services.py": "changed"}
    for line in ('-SAYS = "old "', '+SAYS = "new "', "+limits: {attempts-max: 7}", "+x = 1"):
        assert line in told["text"].splitlines()
    async with server.deployments() as api:
        assert len(await api.versions("same")) == 1
        await api.delete("same")
    assert not list((server.data / "versions").iterdir()), "what was made to compare is gone"


async def test_a_server_that_is_killed_amid_an_update_ends_at_a_version_that_runs(tmp_path: Path) -> None:
    async with running(tmp_path, "--restarts", "0") as server:
        file = write_deployment(tmp_path / "code", "half", says="whole ")
        await server.deploy(file)
        go = tmp_path / "go"
        waits = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        (tmp_path / "code" / "services.py").write_text(f"{waits}raise OSError('broken')\n")
        updating = asyncio.create_task(server.deploy(file))

        async def begun() -> bool:
            async with server.deployments() as api:
                return len((await api.get("half"))["processes"]) == 3

        await eventually(begun, PROCESS_S)
        await server.ends(signal.SIGKILL)
        with pytest.raises(LlamaDeployError):
            await updating
        go.touch()
        await server.start()

        async def runs() -> bool:
            async with server.deployments() as api:
                return bool((await api.get("half"))["state"] == "running")

        await eventually(runs, PROCESS_S)
        async with server.client("half") as client, server.deployments() as api:
            assert await client.run("tell", text="again") == "whole again"
            view = await api.get("half")
            assert (view["version"], [one["state"] for one in await api.versions("half")]) == (1, ["failed", "proved"])
