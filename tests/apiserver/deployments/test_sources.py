"""Deployments whose code is fetched and whose packages differ, on one API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.apiserver.deployments.api_server import ApiServer, running
from tests.apiserver.deployments.test_git import git
from tests.apiserver.deployments.wheels import without_index, write_wheel

from llama_deploy.errors import DeploymentFileError, EnvironmentBuildError, SourceError

pytestmark = pytest.mark.slow

CODE = """\
import tinything
from llama_deploy import service

@service
async def version() -> str:
    return tinything.VERSION + " {says}"
"""
PACKAGED = """
from llama_deploy import service

@service
async def packaged() -> str:
    return "from a package " + VERSION
"""


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiServer]:
    """A server on which `uv` knows two versions of a package, and one that serves."""
    folder = tmp_path_factory.mktemp("server")
    for version in ("1.0", "2.0"):
        write_wheel(folder / "wheels", "tinything", version)
    write_wheel(folder / "wheels", "agentpack", "3.1", source=PACKAGED)
    async with running(folder, environment=without_index(folder / "wheels") | {"OUTSIDE": "from outside"}) as made:
        yield made


def write(folder: Path, text: str, code: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(code)
    file = folder / "deployment.yml"
    file.write_text(text)
    return file


async def test_two_versions_of_a_package_at_once_and_a_package_that_serves(server: ApiServer, tmp_path: Path) -> None:
    for name, wanted in (("old", "tinything==1.0"), ("new", "tinything==2.0")):
        text = (
            f"name: {name}\nservices:\n  version: {{import-path: 'app:version', python-dependencies: ['{wanted}']}}\n"
        )
        if name == "new":
            text += (
                "  packaged:\n    import-path: agentpack:packaged\n    source: {type: package, name: agentpack==3.1}\n"
            )
        await server.deploy(write(tmp_path / name, text, CODE.format(says=name)))
    async with server.client("old") as old, server.client("new") as new:
        assert (await old.run("version"), await new.run("version")) == ("1.0 old", "2.0 new")
        assert await new.run("packaged") == "from a package 3.1"
    text = "name: broken\nservices:\n  version: {import-path: 'app:version', python-dependencies: ['tinything==7']}\n"
    with pytest.raises(EnvironmentBuildError) as failed:
        await server.deploy(write(tmp_path / "broken", text))
    assert "tinything" in failed.value.why
    async with server.deployments() as api:
        assert [view["name"] for view in await api.list_deployments()] == ["new", "old"]
        for name in ("old", "new"):
            await api.delete(name)
    assert list((server.data / "environments").iterdir()) == [], "environments go with the last who uses them"


async def test_a_branch_that_moved_is_an_update_and_going_back_is_the_commit_before(
    server: ApiServer, tmp_path: Path
) -> None:
    bare, work = tmp_path / "code.git", tmp_path / "work"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    git(tmp_path, "init", "-q", str(work))

    def push(says: str) -> str:
        (work / "inside").mkdir(exist_ok=True)
        (work / "inside" / "app.py").write_text(PACKAGED.replace("VERSION", f"{says!r}"))
        git(work, "add", "-A")
        git(work, "commit", "-qm", says)
        git(work, "push", "-q", str(bare), "main")
        return git(work, "rev-parse", "HEAD")

    first = push("one")
    text = (
        "name: fetched\nservices:\n  packaged:\n    import-path: inside/app.py:packaged\n"
        f"    source: {{type: git, name: 'file://{bare}@main'}}\n"
    )
    file = write(tmp_path / "deployment", text)
    await server.deploy(file)
    assert (await server.deploy(file))["changed"] is False
    async with server.client("fetched") as client, server.deployments() as api:
        assert await client.run("packaged") == "from a package one"
        second = push("two")
        told = await server.deploy(file, dry_run=True)
        assert told["changes"]["sources"] == {"packaged": f"commit {first} becomes {second}"}
        await server.deploy(file)
        assert await client.run("packaged") == "from a package two"
        bare.rename(tmp_path / "gone.git")
        await api.rollback("fetched")
        assert await client.run("packaged") == "from a package one"
        with pytest.raises(SourceError):
            await server.deploy(file)
        assert await client.run("packaged") == "from a package one"
        await api.delete("fetched")


async def test_variables_and_secrets_come_from_outside_and_are_shown_nowhere(server: ApiServer, tmp_path: Path) -> None:
    code = (
        "import os\nfrom llama_deploy import service\n\n@service\nasync def tell() -> list[str]:\n"
        "    return [os.environ[name] for name in ('A', 'B', 'C', 'D')]\n"
    )
    text = (
        "name: secret\nservices:\n  tell:\n    import-path: app:tell\n    env:\n"
        "      A: '<${OUTSIDE}>'\n      B: '${NOWHERE:-otherwise}'\n      C: {file: key.txt}\n      D: '$${OUTSIDE}'\n"
    )
    file = write(tmp_path, text, code)
    (tmp_path / "key.txt").write_text("the key\n")
    await server.deploy(file)
    async with server.client("secret") as client, server.deployments() as api:
        assert await client.run("tell") == ["<from outside>", "otherwise", "the key", "${OUTSIDE}"]
        shown = str(await api.get("secret")) + "".join([line async for line in api.logs("secret")])
        assert "the key" not in shown
        assert "from outside" not in shown
        await api.delete("secret")
    file.write_text(text.replace(":-otherwise", ""))
    answer = await server.ask(
        "POST", f"/v1/deployments?base_path={tmp_path}", files={"config_file": ("deployment.yml", file.read_bytes())}
    )
    assert answer.json()["what"] == "the variable NOWHERE is not set"
    async with server.deployments() as api:
        view = await api.get("secret")
        assert (view["state"], "NOWHERE is not set" in view["why"]) == ("failed", True)
        await api.delete("secret")


@pytest.mark.parametrize(
    "service",
    [
        "import-path: 'app:x', source: {type: local, name: ../..}",
        "import-path: '../../app.py:x'",
        "import-path: 'app:x', path: ../..",
        "import-path: 'app:x', env-files: [../outside.env]",
    ],
)
async def test_what_lies_outside_of_the_folder_is_refused(server: ApiServer, tmp_path: Path, service: str) -> None:
    (tmp_path / "outside.env").write_text("A=1\n")
    file = write(tmp_path / "inside", f"name: out\nservices:\n  x: {{{service}}}\n")
    with pytest.raises((SourceError, DeploymentFileError)):
        await server.deploy(file)
    async with server.deployments() as api:
        assert await api.list_deployments() == []
