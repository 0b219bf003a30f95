"""The deployment files that an API server applies at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from llama_deploy.apiserver.deployments.server import DeploymentServer
from llama_deploy.apiserver.deployments.serving import _apply
from llama_deploy.apiserver.deployments.versions import Offer


class Server:
    """One that runs what it is offered."""

    async def deploy(self, offer: Offer, **_: Any) -> tuple[str, bool]:
        return offer.file_name, True


async def test_a_file_that_cannot_be_read_keeps_no_other_one_from_running(tmp_path: Path) -> None:
    (tmp_path / "second.yml").touch()
    said: list[str] = []
    files = [tmp_path / "gone.yml", tmp_path / "second.yml"]
    await _apply(cast("DeploymentServer", Server()), files, said.append)
    assert [line.partition("\n")[0] for line in said] == [f"{tmp_path}/gone.yml: not deployed", "second.yml: ready"]
    assert "No such file" in said[0]
