"""Python environments of services: made by `uv` from a list of dependencies, kept by its hash, whole or not at all.

An environment holds what its service asks for, in the versions that it asks for, and falls back to the packages of
this program's own for everything else; what this program needs itself is a constraint, so that the two fit together.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from llama_deploy.apiserver.deployments.commands import Commands, Ran
from llama_deploy.apiserver.deployments.trees import digest_of, files_of
from llama_deploy.apiserver.source_keys import REQUIREMENT
from llama_deploy.errors import EnvironmentBuildError, MissingExtraError

BUILD_TIMEOUT_S = 1800.0
_DISTRIBUTION = "llama-deploy-engine"


class Environments:
    """The environments below one folder."""

    def __init__(self, root: Path, commands: Commands) -> None:
        self._root = root
        self._commands = commands
        self._turns: dict[str, asyncio.Lock] = {}

    async def build(self, dependencies: Sequence[str], folder: Path) -> Path:
        """The Python of an environment with these dependencies; one that was made before is not made again.

        Paths among them start in `folder`. Raises `EnvironmentBuildError`, and `MissingExtraError` without `uv`.
        """
        wanted, digest = await asyncio.to_thread(_wanted, dependencies, folder)
        place = self._root / digest
        async with self._turns.setdefault(digest, asyncio.Lock()):
            if not place.is_dir():
                await self._make(place, wanted, folder)
        return place / "bin" / "python"

    async def _make(self, place: Path, wanted: list[str], folder: Path) -> None:
        uv = _uv()
        await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
        partial = self._root / f".{place.name}.{os.getpid()}"
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        try:
            made = ("venv", "--quiet", "--no-project", "--relocatable", "--python", sys.executable, str(partial))
            self._check(wanted, await self._run((uv, *made), folder))
            await asyncio.to_thread(_write_lists, partial, wanted)
            install = ("pip", "install", "--quiet", "--python", str(partial / "bin" / "python"))
            lists = ("--requirement", str(partial / "wanted.txt"), "--constraint", str(partial / "constraints.txt"))
            self._check(wanted, await self._run((uv, *install, *lists), folder))
            await asyncio.to_thread(_fall_back_to_ours, partial)
            program = (str(partial / "bin" / "python"), "-P", "-c", "import llama_deploy.apiserver.deployments.program")
            self._check(wanted, await self._run(program, folder))
            await asyncio.to_thread(partial.rename, place)
        finally:
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)

    async def _run(self, command: Sequence[str], folder: Path) -> Ran:
        environment = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "CONDA_PREFIX"}}
        return await self._commands.run(command, folder=folder, environment=environment, timeout_s=BUILD_TIMEOUT_S)

    @staticmethod
    def _check(wanted: list[str], ran: Ran) -> None:
        if ran.timed_out or ran.code:
            raise EnvironmentBuildError(
                f"the environment of {', '.join(wanted)} cannot be made",
                why="it took too long" if ran.timed_out else ran.err or ran.out or f"exit code {ran.code}",
                fix="correct `python-dependencies`; they have to fit what llama_deploy needs itself",
            )


def _wanted(dependencies: Sequence[str], folder: Path) -> tuple[list[str], str]:
    """The requirements that a list stands for, and the hash of all that the environment depends on."""
    wanted: list[str] = []
    contents: dict[str, object] = {}
    for dependency in dependencies:
        if not dependency.startswith("./"):
            wanted.append(dependency)
            continue
        path = (folder / dependency).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.exists():
            raise EnvironmentBuildError(f"there is no {dependency} in the source", why=str(folder))
        if path.is_dir():
            contents[dependency] = digest_of(path, files_of(path))
            wanted.append(str(path))
        elif path.suffix == ".txt":
            wanted += _lines(path)
        else:
            contents[dependency] = hashlib.sha256(path.read_bytes()).hexdigest()
            wanted.append(str(path))
    wanted = list(dict.fromkeys(wanted))
    names = [one if one not in {str((folder / name).resolve()) for name in contents} else "" for one in wanted]
    everything = [sorted(names), contents, sys.version, sys.prefix, sysconfig.get_platform(), _constraints()]
    return wanted, hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


def _lines(path: Path) -> list[str]:
    """The requirements in a file. Raises `EnvironmentBuildError` for options, which are not taken."""
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = text.partition(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        if not REQUIREMENT.fullmatch(line) or line.startswith("./"):
            raise EnvironmentBuildError(
                f"{path.name}:{number}: `{line}` is no requirement", fix="options, paths and other files are not taken"
            )
        found.append(line)
    return found


def _constraints() -> list[str]:
    """What this program needs itself."""
    try:
        required = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # it runs from its source
        return []
    return [one for one in required if "extra ==" not in one]


def _write_lists(environment: Path, wanted: list[str]) -> None:
    (environment / "wanted.txt").write_text("".join(f"{one}\n" for one in wanted), encoding="utf-8")
    (environment / "constraints.txt").write_text("".join(f"{one}\n" for one in _constraints()), encoding="utf-8")


def _fall_back_to_ours(environment: Path) -> None:
    """Have the environment look into this program's packages for what it does not have itself."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / version / "site-packages"
    ours = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    lines = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in ours)
    (packages / "_llama_deploy.pth").write_text(lines, encoding="utf-8")


def _uv() -> str:
    """The program `uv`: of the extra, or of this machine."""
    if importlib.util.find_spec("uv") is not None:
        import uv

        return uv.find_uv_bin()
    found = shutil.which("uv")
    if found is None:
        raise MissingExtraError(
            "`python-dependencies` and sources of the type `package` need the program `uv`",
            fix="pip install 'llama-deploy-engine[deployments]'",
        )
    return found
