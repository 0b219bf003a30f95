"""`llamactl serve` with tokens and TLS, as processes: its own services, others, and a token that changes meanwhile."""

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

import pytest
from tests.support import PROCESS_S, eventually
from tests.support.certificates import Authority

from llama_deploy.client import Client
from llama_deploy.errors import ForbiddenError, UnauthenticatedError
from llama_deploy.runtime.credentials import Credentials

pytestmark = pytest.mark.slow

OLD, NEW = "old-token-of-ci-0123456789", "new-token-of-ci-0123456789"
WORKER, INSIDE = "token-of-workers-0123456789", "token-in-a-variable-0123456"

SERVICES = '''\
"""A service that says what it knows."""
import os
from llama_deploy import service

@service
async def tell() -> dict[str, object]:
    secrets = [value for value in os.environ.values() if "0123456" in value or value.startswith("ld_")]
    return {"pid": os.getpid(), "knows": secrets}
'''

FILE = """\
name: secured
control-plane: {port: 0}
services:
  tell: {import-path: 'services:tell', concurrency: 1}
access:
  tokens:
    ci: {scopes: [run], file: ci}
    worker: {scopes: [serve], file: worker}
    boss: {scopes: [admin], env: BOSS_TOKEN}
  tls: {certificate-file: server.pem, key-file: server.key}
"""


def said_in(folder: Path) -> list[Path]:
    """What programs have said so far, each in a file."""
    return list(folder.glob("said-*"))


@asynccontextmanager
async def llamactl(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[tuple[Any, Path]]:
    """A program of ours for a block, and the file of what it says."""
    said = folder / f"said-{len(said_in(folder))}"
    with said.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llama_deploy.cli", *arguments),
            cwd=folder,
            env={**os.environ, "LLAMACTL_CONFIG": "/no/profiles", **environment},
            stdout=out,
            stderr=out,
        )
    try:
        yield process, said
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PROCESS_S)


def prepare(folder: Path) -> Credentials:
    """Everything that the deployment file names; what is believed of its server."""
    authority = Authority(folder)
    authority.sign("server", "127.0.0.1")
    (folder / "services.py").write_text(SERVICES)
    (folder / "deployment.yml").write_text(FILE)
    for name, text in (("ci", OLD), ("worker", WORKER)):
        (folder / name).write_text(text + "\n")
        (folder / name).chmod(0o600)
    return Credentials(ca_file=authority.file)


async def test_a_deployment_behind_tokens_and_tls(tmp_path: Path) -> None:
    believed = prepare(tmp_path)
    ready = tmp_path / "ready.json"
    serve = llamactl(tmp_path, "serve", "--ready-file", str(ready), BOSS_TOKEN=INSIDE, LLAMA_DEPLOY_TOKEN=INSIDE)
    async with serve as (server, said):
        await eventually(ready.exists, PROCESS_S)
        url = json.loads(ready.read_text())["url"]
        assert url.startswith("https://")

        async def runs(token: str) -> Any:
            async with Client(url, token=token, credentials=believed, timeout_s=PROCESS_S) as client:
                return await client.run("tell")

        told = await runs(OLD)
        assert told["pid"] != server.pid
        assert told["knows"] == []
        with pytest.raises(ForbiddenError):
            await runs(WORKER)

        (tmp_path / "ci").write_text(f"{NEW}\n")
        server.send_signal(signal.SIGHUP)
        await eventually(lambda: said.read_text().count("access: with a token") == 2, PROCESS_S)
        with pytest.raises(UnauthenticatedError):
            await runs(OLD)
        assert (await runs(NEW))["pid"] == told["pid"]

        others = ("--ca-file", str(believed.ca_file), "--token-file")
        only = ("serve", str(tmp_path), "--only", "tell", "--control-plane", url)
        async with (
            llamactl(tmp_path, *others, "worker", *only),
            Client(url, token=INSIDE, credentials=believed) as boss,
        ):

            async def both() -> bool:
                return len((await boss.get_service("tell")).instances) == 2

            await eventually(both, PROCESS_S)
        async with llamactl(tmp_path, *others, "ci", *only) as (refused, why):
            assert await asyncio.wait_for(refused.wait(), PROCESS_S) == 6
            assert "LD251" in why.read_text()
    assert server.returncode == 0
    audit = tmp_path / ".llama_deploy" / "secured.audit.jsonl"
    written = "".join(path.read_text() for path in [*said_in(tmp_path), audit])
    assert not [text for text in (OLD, NEW, WORKER, INSIDE) if text in written]
    who = {json.loads(line)["who"] for line in audit.read_text().splitlines()}
    assert who == {"ci", "worker", "unknown", "(own services)"}
