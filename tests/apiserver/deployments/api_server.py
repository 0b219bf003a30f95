"""An API server as a process of a test: started, killed, asked, and gone with all that it has started."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from tests.support import PROCESS_S, eventually

from llama_deploy.client import Client
from llama_deploy.client.deployments import DeploymentsClient, deployment_url

MODULE = "llama_deploy.apiserver.deployments.program"

SERVICES = '''\
"""Services of a test; every deployment has a module of this name."""
import asyncio, os
from pathlib import Path
from llama_deploy import service

SAYS = "{says}"

@service
async def tell(text: str) -> str:
    return f"{{SAYS}}{{text}}" + os.environ.get("MARK", "")

@service(concurrency=1000)
async def gate(path: str) -> str:
    """Says which version it is of, once a file is there."""
    Path(path + ".entered").touch()
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    return SAYS
'''


def write_deployment(
    folder: Path, name: str, *, says: str = "", more: str = "", mark: str = "", gate: bool = False
) -> Path:
    """A deployment file and its code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "services.py").write_text(SERVICES.format(says=says))
    file = folder / "deployment.yml"
    file.write_text(
        f"name: {name}\n"
        "control-plane: {port: 8000}\n"
        "services:\n"
        f"  tell: {{import-path: 'services:tell', env: {{MARK: '{mark}'}}}}\n"
        + ("  gate: {import-path: 'services:gate'}\n" if gate else "")
        + more
    )
    return file


class ApiServer:
    """The process, and how to ask it."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._arguments = arguments
        self._environment = environment or {}
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process that was started last."""
        assert self._process is not None, "it was started"
        return self._process

    @property
    def said(self) -> str:
        """What it has written to standard error."""
        return (self.folder / "stderr").read_text()

    async def start(self) -> None:
        """Start it, and wait until it takes requests."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_DEPLOY")}
        with (self.folder / "stderr").open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "llama_deploy.cli", "apiserver", "--port", "0"),
                *("--data", str(self.data), "--ready-file", str(ready), "--drain-timeout", "5", *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=errors,
                env={**environment, **self._environment},
            )
        await eventually(lambda: ready.exists() or self.process.returncode is not None, PROCESS_S)
        assert ready.exists(), self.said
        self.url = json.loads(ready.read_text())["url"]

    async def ends(self, number: signal.Signals) -> int:
        """Send it a signal, and wait for its end."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PROCESS_S)

    async def stop(self) -> None:
        """End it, at once if need be."""
        if self.process.returncode is None:
            await self.ends(signal.SIGKILL)

    def deployments(self) -> DeploymentsClient:
        """A client of it."""
        return DeploymentsClient(self.url)

    def client(self, name: str) -> Client:
        """A client of a deployment's control plane."""
        return Client(deployment_url(self.url, name), timeout_s=PROCESS_S)

    async def deploy(self, file: Path, **options: Any) -> dict[str, Any]:
        """Run a deployment file from its folder."""
        source = await asyncio.to_thread(file.read_bytes)
        async with self.deployments() as api:
            return await api.deploy(source, file_name=file.name, base_path=str(file.parent), **options)

    async def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """A plain request."""
        async with httpx2.AsyncClient(base_url=self.url, timeout=PROCESS_S) as http:
            return await http.request(method, path, **more)

    async def events(self, name: str) -> list[str]:
        """What happened to a deployment, as `kind: message`."""
        async with self.deployments() as api:
            return [f"{event['kind']}: {event['message']}" async for event in api.events(name)]

    def processes(self) -> list[int]:
        """Every process of a deployment on this server's data, wherever in the tree it is now."""
        found = []
        for place in Path("/proc").iterdir():
            try:
                words = (place / "cmdline").read_bytes().decode().split("\0")
            except (OSError, ValueError):
                continue
            if place.name.isdigit() and any(str(self.data) in word for word in words):
                found.append(int(place.name))
        return [pid for pid in found if pid != self.process.pid]


@asynccontextmanager
async def running(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> AsyncIterator[ApiServer]:
    """An API server for a block."""
    server = ApiServer(folder, *arguments, environment=environment)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
