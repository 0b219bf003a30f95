"""Many deployments on one API server as real processes: apart from each other, and as wanted, whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.apiserver.deployments.api_server import ApiServer, running, write_deployment
from tests.support import PROCESS_S, eventually

from llama_deploy.client import Client
from llama_deploy.client.deployments import DeploymentsClient, deployment_url
from llama_deploy.errors import (
    DeploymentFailedError,
    DeploymentFileError,
    DeploymentNotFoundError,
    DeploymentUnavailableError,
    ForbiddenError,
    SettingError,
    TaskFailed,
    UnauthenticatedError,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiServer]:
    """A server with the deployments `one` and `two`, whose modules and ports have the same names."""
    folder = tmp_path_factory.mktemp("server")
    write_deployment(folder / "one", "one", says="first ", mark="!", gate=True)
    write_deployment(folder / "two", "two", says="second ", mark="?")
    async with running(folder, str(folder / "one"), str(folder / "two"), "--restarts", "2") as made:
        async with made.deployments() as api:

            async def both_run() -> bool:
                return [view["state"] for view in await api.list_deployments()] == ["running", "running"]

            await eventually(both_run, PROCESS_S)
        yield made


async def test_deployments_with_the_same_names_inside_do_not_notice_each_other(server: ApiServer) -> None:
    async with server.client("one") as one, server.client("two") as two:
        assert await one.run("tell", text="hello") == "first hello!"
        assert await two.run("tell", text="hello") == "second hello?"
        assert len([task async for task in one.list_tasks()]) == 1
    answer = await server.ask(
        "POST", "/deployments/two/tasks/run", json={"input": '{"text": "old"}', "agent_id": "tell"}
    )
    assert answer.json() == "second old?"
    status = (await server.ask("GET", "/status/")).json()
    assert (status["status"], status["deployments"]) == ("Healthy", ["one", "two"])


async def test_a_killed_process_of_one_is_nothing_to_the_other(server: ApiServer, tmp_path: Path) -> None:
    async with server.deployments() as api, server.client("one") as one, server.client("two") as two:
        before = {view["name"]: view["processes"] for view in await api.list_deployments()}
        task_id = await one.submit("gate", path=str(tmp_path / "open"))
        await eventually((tmp_path / "open.entered").exists, PROCESS_S)
        for process in before["one"]:
            os.kill(process["pid"], signal.SIGKILL)
        assert await two.run("tell", text="still") == "second still?"
        (tmp_path / "open").touch()
        assert (await one.wait(task_id)).output == "first "

        async def all_back() -> bool:
            view = await api.get("one")
            return view["state"] == "running" and all(process["ready"] for process in view["processes"])

        await eventually(all_back, PROCESS_S)
        assert (await api.get("two"))["processes"] == before["two"]
    told = await server.events("one")
    assert any(line.startswith("restarting: control-plane: killed by SIGKILL") for line in told)


async def test_a_file_that_is_not_valid_is_refused_with_all_that_is_wrong(server: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "deployment.yml"
    file.write_text("name: three\nservices:\n  a: {import_path: 'x:y'}\n  b: {import-path: 7}\n")
    with pytest.raises(DeploymentFileError) as refused:
        await server.deploy(file)
    assert "did you mean `import-path`" in refused.value.why
    assert [problem["line"] for problem in refused.value.details["problems"]] == [3, 3, 4]
    with pytest.raises(DeploymentNotFoundError):
        async with server.deployments() as api:
            await api.get("three")


async def test_a_service_that_keeps_dying_fails_with_its_last_lines_and_after_its_budget(
    server: ApiServer, tmp_path: Path
) -> None:
    file = write_deployment(tmp_path, "dying")
    (tmp_path / "services.py").write_text("import os\nprint('no luck today', flush=True)\nos._exit(7)\n")
    with pytest.raises(DeploymentFailedError) as failed:
        await server.deploy(file)
    assert "exit code 7" in failed.value.what
    assert "no luck today" in failed.value.why
    async with server.deployments() as api:
        view = await api.get("dying")
        assert view["state"] == "failed"
        assert "no luck today" in view["why"]
        assert {process["restarts"] for process in view["processes"] if process["state"] == "failed"} == {2}
        lines = [line async for line in api.logs("dying")]
        assert any("[tell/1@1] no luck today" in line for line in lines)
        write_deployment(tmp_path, "dying", says="well ")
        await server.deploy(file)
        async with server.client("dying") as client:
            assert await client.run("tell", text="now") == "well now"
        await api.delete("dying")
    assert not list(server.data.rglob("*dying*"))


async def test_what_came_to_nothing_is_started_when_it_is_asked_for_again(server: ApiServer, tmp_path: Path) -> None:
    file, secret = write_deployment(tmp_path, "early"), tmp_path / "outside" / "secret"
    file.write_text(file.read_text().replace("MARK: ''", f"MARK: {{file: {secret}}}"))
    with pytest.raises(SettingError):
        await server.deploy(file)
    async with server.deployments() as api:
        assert (await api.get("early"))["processes"] == []
        with pytest.raises(SettingError):
            await api.start("early")
        secret.parent.mkdir()
        secret.write_text("!")
        assert (await api.start("early"))["state"] == "running"
        async with server.client("early") as client:
            assert await client.run("tell", text="now") == "now!"
        await api.delete("early")


async def test_what_was_recorded_is_there_after_a_stop_and_gone_after_a_delete(
    server: ApiServer, tmp_path: Path
) -> None:
    await server.deploy(write_deployment(tmp_path, "kept", says="kept "))
    async with server.deployments() as api:
        async with server.client("kept") as client:
            task_id = await client.submit("tell", text="it")
            await client.wait(task_id)
        await api.stop("kept")
        assert (await api.get("kept"))["state"] == "stopped"
        refused = await server.ask("GET", "/deployments/kept/v1/status")
        assert (refused.status_code, refused.json()["code"]) == (503, DeploymentUnavailableError.code)
        await api.start("kept")
        async with server.client("kept") as client:
            assert (await client.wait(task_id)).output == "kept it"
        await api.delete("kept")
        assert (await server.ask("GET", "/deployments/kept/v1/status")).status_code == 404
        await server.deploy(write_deployment(tmp_path, "kept"))
        async with server.client("kept") as client:
            assert [task async for task in client.list_tasks()] == []
        await api.delete("kept")


async def test_the_published_route_creates_once_and_again_only_when_told_to(server: ApiServer, tmp_path: Path) -> None:
    file = write_deployment(tmp_path, "published")
    form = {"config_file": ("deployment.yml", file.read_bytes())}
    create = f"/deployments/create?base_path={tmp_path}"
    assert (await server.ask("POST", create, files=form)).json() == {"name": "published"}
    write_deployment(tmp_path, "published", says="again ")
    text = "name: alone\nservices: {tell: {import-path: 'services:tell', source: {type: local, name: src}}}\n"
    alone = await server.ask("POST", "/deployments/create", files={"config_file": ("upload", text.encode())})  # as 0.2
    assert (alone.status_code, "?base_path=FOLDER" in alone.json()["fix"]) == (400, True), alone.text
    refused = await server.ask("POST", create, files=form)
    assert (refused.status_code, refused.json()["code"]) == (409, "LD242")
    assert (await server.ask("POST", f"{create}&reload=true", files=form)).status_code == 200
    ran = {"input": '{"text": "x"}', "agent_id": "tell"}
    assert (await server.ask("POST", "/deployments/published/tasks/run", json=ran)).json() == "again x"
    session = (await server.ask("POST", "/deployments/published/sessions/create")).json()["session_id"]
    assert [one["session_id"] for one in (await server.ask("GET", "/deployments/published/sessions")).json()] == [
        session
    ]
    async with server.deployments() as api:
        await api.delete("published")


async def test_pages_of_others_and_names_of_others_are_refused(server: ApiServer) -> None:
    for headers, code in (({"origin": "https://evil.example"}, "LD254"), ({"host": "evil.example"}, "LD253")):
        answer = await server.ask("POST", "/deployments/create", headers=headers, content=b"x")
        assert (answer.status_code, answer.json()["code"]) == (403, code), headers
    assert (await server.ask("GET", "/status", headers={"origin": server.url})).status_code == 200


async def test_after_a_kill_of_the_server_everything_is_as_it_was(tmp_path: Path) -> None:
    write_deployment(tmp_path / "one", "one", says="one ", gate=True)
    async with running(tmp_path) as server:
        await server.deploy(tmp_path / "one" / "deployment.yml")
        async with server.deployments() as api:
            await api.scale("one", "gate", 2)
        async with server.client("one") as client:
            task_ids = [await client.submit("gate", path=str(tmp_path / "open")) for _ in range(20)]
            await eventually((tmp_path / "open.entered").exists, PROCESS_S)
        assert len(server.processes()) == 4
        await server.ends(signal.SIGKILL)
        await eventually(lambda: not server.processes(), PROCESS_S)
        await server.start()
        (tmp_path / "open").touch()
        async with server.deployments() as api:

            async def runs() -> bool:
                view = await api.get("one")
                return [(line["name"], line["ready"]) for line in view["services"]] == [("tell", 1), ("gate", 2)]

            await eventually(runs, PROCESS_S)
        async with server.client("one") as client:
            assert {(await client.wait(task_id)).output for task_id in task_ids} == {"one "}
        assert await server.ends(signal.SIGTERM) == 0
        assert server.processes() == []


async def test_with_tokens_each_deployment_is_behind_them(tmp_path: Path) -> None:
    write_deployment(tmp_path / "one", "one", says="one ")
    tokens = {"boss": ("deploy, run", "token-of-the-boss-0123456"), "page": ("read", "token-of-the-page-0123456")}
    lines = [f"  {name}: {{scopes: [{scopes}], token: {text}}}" for name, (scopes, text) in tokens.items()]
    (tmp_path / "access.yml").write_text("tokens:\n" + "\n".join(lines) + "\n")
    async with running(tmp_path, "--access", str(tmp_path / "access.yml")) as server:
        boss, page = tokens["boss"][1], tokens["page"][1]
        async with DeploymentsClient(server.url, token=boss) as api:
            file = tmp_path / "one" / "deployment.yml"
            await api.deploy(file.read_bytes(), base_path=str(file.parent))
            with pytest.raises(ForbiddenError):
                await api.delete("one")
            processes = (await api.get("one"))["processes"]
        url = deployment_url(server.url, "one")
        async with Client(url, token=boss) as client:
            assert await client.run("tell", text="x") == "one x"
        async with Client(url, token=page) as client:
            with pytest.raises(ForbiddenError):
                await client.run("tell", text="x")
            assert (await client.status())["tasks"] == {"completed": 1}
        async with Client(url) as client:
            with pytest.raises(UnauthenticatedError):
                await client.status()
        plane = next(process["pid"] for process in processes if process["name"] == "control-plane")
        behind = f"http://127.0.0.1:{listening_port(plane)}"
        for text in (None, boss):
            async with Client(behind, token=text) as client:
                with pytest.raises(UnauthenticatedError):
                    await client.status()
        assert boss not in server.said


def listening_port(pid: int) -> int:
    """The port of loopback on which a process listens, by what the kernel says."""
    inodes = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].partition(":")[2], 16)
    raise AssertionError("it listens nowhere")


async def test_the_published_command_line_works(server: ApiServer) -> None:
    async def llamactl(*arguments: str) -> tuple[int, str]:
        command = (sys.executable, "-m", "llama_deploy.cli", *arguments)
        environment = {**os.environ, "LLAMA_DEPLOY_API_SERVER_URL": server.url, "LLAMACTL_CONFIG": "/no/profiles"}
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    code, out = await llamactl("-s", server.url, "status")
    assert (code, "one " in out, "two " in out) == (0, True, True)
    code, session = await llamactl("-s", server.url, "sessions", "create", "-d", "one", "-o", "name")
    assert (code, bool(session.strip())) == (0, True)
    said = ("-d", "one", "-s", "tell", "-a", "text", "hello", "-i", session.strip())
    assert await llamactl("-q", "run", *said) == (0, "first hello!\n")
    async with server.client("one") as client:
        assert (await client.get_session(session.strip())).task_count == 1
    before = ("-q", "-s", server.url, "run", "-d", "one")
    after = ("-s", "tell", "-a", "text", "again", "--session-id", session.strip())
    assert await llamactl(*before, *after) == (0, "first again!\n")
    code, out = await llamactl("-s", server.url, "logs", "one", "-o", "json")
    assert (code, "control-plane" in out) == (0, True)
    assert await llamactl("-s", server.url, "logs") == (2, "")  # which of them?
    assert await llamactl("-s", server.url, "open", "one") == (2, "")  # it has no page
    metrics = await server.ask("GET", "/status/metrics")
    assert 'llama_deploy_deployment_state{deployment="one",state="running"} 1\n' in metrics.text
    assert 'llama_deploy_process_ready{deployment="one",process="control-plane"} 1\n' in metrics.text
    inside = await server.ask("GET", "/deployments/one/status/metrics")
    assert 'llama_deploy_tasks{state="completed"}' in inside.text


async def test_memory_beyond_its_limit_fails_a_task_and_harms_nobody(server: ApiServer, tmp_path: Path) -> None:
    file = write_deployment(tmp_path, "greedy")
    with (tmp_path / "services.py").open("a") as code:
        code.write("\n@service\ndef take(mb: int) -> int:\n    return len(bytearray(mb << 20)) >> 20\n")
    file.write_text(
        file.read_text()
        + "  take: {import-path: 'services:take', process-memory-mb-max: 256, retry: {max-retries: 0}}\n"
    )
    await server.deploy(file)
    async with server.client("greedy") as client, server.deployments() as api:
        before = (await api.get("greedy"))["processes"]
        assert await client.run("take", mb=50) == 50
        with pytest.raises(TaskFailed, match="MemoryError"):
            await client.run("take", mb=1000)
        assert await client.run("take", mb=50) == 50
        assert await client.run("tell", text="fine") == "fine"
        assert (await api.get("greedy"))["processes"] == before
        await api.delete("greedy")
