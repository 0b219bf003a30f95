"""The image, as far as it can be checked where none is built: its file, its locks, its health check, its signals.

The commands that compose.yml gives to containers are run here as processes, with the folders and ports of a test.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.containers.commands import ROOT, parsed
from tests.support import PROCESS_S, eventually
from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.postgres import database_url

from llama_deploy.control_plane.http.access.tls import server_context
from llama_deploy.types.access import TLSFiles

DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and line[0] not in "# "]
FINAL = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
HEALTH_CHECK = ROOT / "deploy" / "image" / "healthcheck.py"
COMPOSE = ROOT / "deploy" / "compose"


def test_a_linter_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is only packaged for x86_64")
    ran = subprocess.run([hadolint, str(ROOT / "Dockerfile")], check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_what_it_copies_is_there_and_is_given_to_the_builder() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [line.split()[1:-1] for line in INSTRUCTIONS if line.startswith("COPY ") and "--from" not in line]
    assert copied
    for source in (source.removeprefix("./") for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
        assert any(source == one or fnmatch.fnmatch(source, f"{one}/*") for one in allowed), f"{source} is left out"


def test_only_lock_files_are_installed() -> None:
    installs = re.findall(r"pip install ([^&\\\n]*)", DOCKERFILE)
    assert len(installs) == 3
    for given in installs:
        assert "--require-hashes -r " in given or "--no-index --no-deps dist/" in given, given


def test_it_does_not_run_as_root_and_signals_reach_the_program() -> None:
    assert "\nUSER 10001:10001\n" in FINAL
    assert FINAL.index("\nUSER ") < FINAL.index("\nENTRYPOINT ")
    entry = json.loads(re.search(r"\nENTRYPOINT (\[.*\])", FINAL)[1])  # type: ignore[index]
    assert entry == ["llamactl"], "a shell in between would keep SIGTERM to itself"
    command = json.loads(re.search(r"\nCMD (\[.*\])", FINAL)[1])  # type: ignore[index]
    assert parsed(command)["ready_file"] == Path("/tmp/ready.json")


def test_the_health_check_is_the_one_that_is_copied() -> None:
    command = json.loads(re.search(r"HEALTHCHECK .*CMD (\[.*\])", FINAL)[1])  # type: ignore[index]
    assert f"COPY deploy/image/healthcheck.py {command[1]}\n" in FINAL


@pytest.mark.parametrize(("status", "code"), [("200 OK", 0), ("503 Service Unavailable", 1)])
async def test_a_control_plane_that_speaks_tls_is_asked_with_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    authority = Authority(tmp_path)
    server, own = authority.sign("server", "elsewhere.example.com"), authority.sign("client")
    context = server_context(TLSFiles(certificate=server.certificate, key=server.key, client_ca=authority.file))
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    monkeypatch.setenv("LLAMA_DEPLOY_CLIENT_CERTIFICATE_FILE", str(own.certificate))
    monkeypatch.setenv("LLAMA_DEPLOY_CLIENT_KEY_FILE", str(own.key))
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as served:
        url = f"https://127.0.0.1:{served.sockets[0].getsockname()[1]}"
        ready_file = tmp_path / "ready.json"
        ready_file.write_text(json.dumps({"url": url, "pid": os.getpid(), "store": ":memory:"}))
        found, said = await asyncio.to_thread(healthy, ready_file)
    assert found == code, said
    assert asked == [b"GET /readyz HTTP/1.1\r\n"]


# --- the commands, as processes ------------------------------------------------------------------------------------


def healthy(ready_file: Path) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, str(HEALTH_CHECK)],
        env={**os.environ, "LLAMA_DEPLOY_READY_FILE": str(ready_file)},
        check=False,
        capture_output=True,
        text=True,
    )
    return ran.returncode, ran.stdout + ran.stderr


class Containers:
    """What a compose file runs, as processes of this machine."""

    def __init__(self, folder: Path, file: str) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.commands = {
            name: service["command"]
            for name, service in yaml.safe_load((COMPOSE / file).read_text())["services"].items()
            if "llama-deploy" in service["image"]
        }

    def ready_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def start(self, name: str, changes: dict[str, str]) -> None:
        changes = {"/tmp/ready.json": str(self.ready_file(name)), **changes}
        arguments = list(self.commands[name])
        for old, new in changes.items():
            arguments = [argument.replace(old, new) for argument in arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "llama_deploy.cli", *arguments]
            self.running[name] = subprocess.Popen(command, cwd=COMPOSE / "app", stdout=log, stderr=log)

    async def is_ready(self, name: str) -> None:
        await eventually(lambda: healthy(self.ready_file(name))[0] == 0, PROCESS_S)

    def stop(self, name: str) -> int:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(PROCESS_S)


@pytest.fixture
def containers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Containers]:
    made = Containers(tmp_path, getattr(request, "param", "compose.yml"))
    yield made
    for process in made.running.values():
        process.kill()
        process.wait()


async def shouted(url: str) -> str:
    run = [sys.executable, "-m", "llama_deploy.cli", "-s", url, "run", "shout", "-a", "text", "hello"]
    ran = await asyncio.to_thread(subprocess.run, run, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.slow
async def test_the_commands_of_the_containers_run_and_stop(containers: Containers) -> None:
    here = {"--host=0.0.0.0": "--port=0", "${STORE:?name an env file, for example --env-file sqlite.env}": ":memory:"}
    containers.start("control-plane", {**here, "${MESSAGE_QUEUE:-simple}": "simple"})
    assert healthy(containers.ready_file("control-plane"))[0] == 1, "not before it is ready"
    await containers.is_ready("control-plane")
    url = json.loads(containers.ready_file("control-plane").read_text())["url"]
    containers.start("shout", {"http://control-plane:8000": url})
    await containers.is_ready("shout")

    assert await shouted(url) == "HELLO"

    containers.running["shout"].kill()
    containers.running.pop("shout").wait()
    code, said = healthy(containers.ready_file("shout"))
    assert code == 1, "it was killed, and left its file"
    assert "has died" in said
    assert containers.stop("control-plane") == 0
    code, said = healthy(containers.ready_file("control-plane"))
    assert code == 1
    assert "is not there" in said


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("containers", ["two-control-planes.yml"], indirect=True)
async def test_of_two_control_planes_one_may_be_killed(containers: Containers, database: str) -> None:
    planes = ("control-plane-1", "control-plane-2")
    ports = {name: free_port() for name in planes}
    urls = {f"http://{name}:8000": f"http://127.0.0.1:{port}" for name, port in ports.items()}
    for name in planes:
        here = {"--host=0.0.0.0": f"--port={ports[name]}", "postgresql://demo@postgresql/demo": database}
        containers.start(name, {**here, **urls})
    for name in planes:
        await containers.is_ready(name)
    containers.start("shout", urls)
    await containers.is_ready("shout")
    assert await shouted(urls["http://control-plane-2:8000"]) == "HELLO"

    killed = containers.running.pop("control-plane-1")
    killed.kill()
    killed.wait()
    assert await shouted(",".join(urls.values())) == "HELLO"
    assert healthy(containers.ready_file("control-plane-2"))[0] == 0
    assert [containers.stop(name) for name in ("shout", "control-plane-2")] == [0, 0]
