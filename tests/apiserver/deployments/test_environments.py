"""Python environments of services: what they hold, when they are made again, and why some cannot be made."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.apiserver.deployments.wheels import without_index, write_wheel

from llama_deploy.apiserver.deployment_file import parse_deployment_file
from llama_deploy.apiserver.deployments.commands import Commands
from llama_deploy.apiserver.deployments.environments import Environments
from llama_deploy.errors import DeploymentFileError, EnvironmentBuildError, MissingExtraError
from llama_deploy.runtime.lifeline import Guard

pytestmark = pytest.mark.slow


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environments]:
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "wheels", "tinything", version)
    write_wheel(tmp_path / "wheels", "oldfashioned", "1.0", requires=("pydantic<2",))
    write_wheel(tmp_path / "wheels", "pydantic", "1.0")
    for name, value in without_index(tmp_path / "wheels").items():
        monkeypatch.setenv(name, value)
    guard = Guard()
    guard.start()
    yield Environments(tmp_path / "environments", Commands(guard))
    guard.stop()


def says(python: Path, program: str) -> str:
    return subprocess.run([python, "-P", "-c", program], check=True, capture_output=True, text=True).stdout.strip()


async def test_each_list_has_an_environment_of_its_own_that_is_made_once(
    environments: Environments, tmp_path: Path
) -> None:
    (tmp_path / "wanted.txt").write_text("# what it needs\ntinything==2.0  # the new one\n")
    one = await environments.build(("tinything==1.0",), tmp_path)
    two = await environments.build(("./wanted.txt",), tmp_path)
    assert says(one, "import tinything; print(tinything.VERSION)") == "1.0"
    assert says(two, "import tinything, llama_deploy; print(tinything.VERSION)") == "2.0"
    made = one.parent.parent.stat().st_mtime_ns
    assert await environments.build(("tinything==1.0",), tmp_path) == one
    assert one.parent.parent.stat().st_mtime_ns == made
    (tmp_path / "wanted.txt").write_text("tinything==1.0\n")
    assert await environments.build(("./wanted.txt",), tmp_path) == one


async def test_what_cannot_be_made_is_told_and_leaves_nothing(environments: Environments, tmp_path: Path) -> None:
    for wanted, why in (("tinything==3.0", "tinything"), ("oldfashioned", "pydantic"), ("./gone.txt", "gone.txt")):
        with pytest.raises(EnvironmentBuildError) as failed:
            await environments.build((wanted,), tmp_path)
        assert why in failed.value.render()
    (tmp_path / "bad.txt").write_text("--index-url https://evil.example\n")
    with pytest.raises(EnvironmentBuildError) as refused:
        await environments.build(("./bad.txt",), tmp_path)
    assert "bad.txt:1" in refused.value.what
    root = tmp_path / "environments"
    assert not root.exists() or list(root.iterdir()) == []


async def test_without_uv_the_error_says_which_extra(
    environments: Environments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError) as missing:
        await environments.build(("tinything",), tmp_path)
    assert "[deployments]" in missing.value.fix


@pytest.mark.parametrize(
    "dependency",
    [
        "--index-url=x",
        "-e .",
        "-r x",
        "../outside.txt",
        "./../x",
        "a b",
        "name @ git+ext::x",
        "name @ file:///etc",
        "/etc",
    ],
)
def test_what_is_no_requirement_is_refused(tmp_path: Path, dependency: str) -> None:
    text = f"name: demo\nservices:\n  a: {{import-path: 'a:b', python-dependencies: ['{dependency}']}}\n"
    with pytest.raises(DeploymentFileError):
        parse_deployment_file(text.encode(), tmp_path / "deployment.yml")


@pytest.mark.parametrize(
    "dependency",
    [
        "requests",
        "requests>=2,<3",
        "a[b, c]==1.0; python_version < '4'",
        "a @ https://host/a.whl",
        "./wanted.txt",
        "a~=1.0",
    ],
)
def test_what_is_a_requirement_is_taken(tmp_path: Path, dependency: str) -> None:
    text = f'name: demo\nservices:\n  a: {{import-path: "a:b", python-dependencies: ["{dependency}"]}}\n'
    file = parse_deployment_file(text.encode(), tmp_path / "deployment.yml")
    assert file.services[0].python_dependencies == (dependency,)
