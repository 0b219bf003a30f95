"""Watches a deployment file and its services' folders, and says what a change on disk means for what is running.

It starts and stops nothing: whoever iterates over `changes` does. A file that is no longer valid (YAML or Python) is
reported and changes nothing, so that half-typed code never takes down what works.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

import watchfiles

from llama_deploy.apiserver.deployment_file import load_deployment_file
from llama_deploy.apiserver.specs import DeploymentFile, ServiceSpec
from llama_deploy.errors import DeploymentFileError

IGNORED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", ".venv", "venv", ".llama_deploy", "__pycache__", "node_modules", ".tox"}
    | {".mypy_cache", ".pytest_cache", ".ruff_cache", ".idea", ".vscode", "site-packages"}
)
"""Folders in which nothing is code of a service, wherever they are."""

QUIET_MS = 50
"""How long it has to be quiet before a burst of changes (a save, a checkout) is taken for finished."""


@dataclass(frozen=True, slots=True)
class ServicesChanged:
    """Code of these services changed: they have to start again."""

    services: tuple[str, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class FileChanged:
    """The deployment file changed, and this is what it says now."""

    file: DeploymentFile


@dataclass(frozen=True, slots=True)
class Refused:
    """Something changed and is not valid, so everything stays as it is."""

    reason: str


Change = ServicesChanged | FileChanged | Refused


async def changes(file: DeploymentFile) -> AsyncIterator[Change]:
    """What happens to a deployment's files from now on, without end.

    A burst of changes is one. After a new deployment file its folders are watched; a file that was invalid is read
    again when it changes again. Raises `OSError` when the system cannot watch (its limit on watches, say).
    """
    judge = _Judge(file)
    watches = _Watches(judge)
    try:
        await watches.renew()
        while True:
            found = judge.means(sorted(await watches.next()))
            await watches.renew()  # before anybody acts on it: what changes meanwhile is not missed
            for change in found:
                yield change
    finally:
        await watches.close()


class _Watches:
    """A watch for each folder, for as long as the deployment file that the judge has names it."""

    def __init__(self, judge: _Judge) -> None:
        self._judge = judge
        self._watching: dict[Path, asyncio.Task[None]] = {}
        self._found: asyncio.Queue[set[Path] | Exception] = asyncio.Queue()

    async def renew(self) -> None:
        """Watch what is to be watched by now; what was watched already is, without a gap."""
        wanted = _watched(self._judge.file)
        await self._end(self._watching.keys() - set(wanted))
        for folder in wanted:
            if folder not in self._watching:
                self._watching[folder] = asyncio.create_task(self._watch(folder))
        await asyncio.sleep(0)  # each watches from its first step on

    async def next(self) -> set[Path]:
        """What has changed since it was last asked for. Raises what keeps a folder from being watched."""
        paths: set[Path] = set()
        while not paths or not self._found.empty():
            found = await self._found.get()
            if isinstance(found, Exception):
                raise found
            paths |= found
        return paths

    async def close(self) -> None:
        """Watch nothing any more."""
        await self._end(set(self._watching))

    async def _watch(self, folder: Path) -> None:
        judged = _Filter(self._judge)
        try:
            async for found in watchfiles.awatch(folder, watch_filter=judged, step=QUIET_MS, recursive=True):
                self._found.put_nowait({Path(path) for _, path in found})
        except Exception as error:  # noqa: BLE001 - whoever asks for the next change gets it
            self._found.put_nowait(error)

    async def _end(self, folders: AbstractSet[Path]) -> None:
        ending = [self._watching.pop(folder) for folder in folders]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


class _Judge:
    """Knows what is running, and what a burst of changes means for it."""

    def __init__(self, file: DeploymentFile) -> None:
        self.file = file
        self._pending: set[str] = set()
        """Services whose code changed and that have not been told to start again."""
        self._broken: set[Path] = set()
        """Python files that did not compile when they last changed."""

    def means(self, paths: list[Path]) -> list[Change]:
        """The changes that follow from these files having changed, in the order in which to act on them."""
        found: list[Change] = []
        if _place(self.file) in paths:
            try:
                file = load_deployment_file(self.file.path)
            except DeploymentFileError as error:
                found.append(Refused(error.render()))
            else:
                if file != self.file:
                    starting = {service.name for service in file.services if service not in self.file.services}
                    self.file = file
                    return [FileChanged(file), *self._code(paths, starting)]
        return found + self._code(paths)

    def _code(self, paths: list[Path], starting: AbstractSet[str] = frozenset()) -> list[Change]:
        """Which services start again: those with changed code, unless a file of theirs is no Python.

        `starting` are services that start now anyway.
        """
        for path in paths:
            _forget_compiled(path)
        problems = {path: _syntax_problem(path) for path in [*paths, *self._broken - set(paths)]}
        self._broken = {path for path, problem in problems.items() if problem is not None}
        services = self.file.services
        self._pending |= {service.name for service in services if self._concerns_any(service, paths)}
        self._pending -= starting
        ready = [s.name for s in services if s.name in self._pending and not self._concerns_any(s, self._broken)]
        self._pending -= set(ready)
        found: list[Change] = []
        reasons = [problem for path in paths if (problem := problems[path]) is not None]
        if reasons:
            found.append(Refused("\n".join(reasons)))
        if ready:
            found.append(ServicesChanged(tuple(ready), tuple(paths)))
        return found

    def _concerns_any(self, service: ServiceSpec, paths: Iterable[Path]) -> bool:
        return any(_concerns(service, self.file.folder, path) for path in paths)


def _place(file: DeploymentFile) -> Path:
    """Where changes of the deployment file are reported: in its real folder, a link to a file being its own."""
    return file.folder.resolve() / file.path.name


def _concerns(service: ServiceSpec, base_folder: Path, path: Path) -> bool:
    if path.suffix == ".py":
        return any(path.is_relative_to(folder.resolve()) for folder in service.watched_folders(base_folder))
    return any(path == (base_folder / env_file).resolve() for env_file in service.env_files)


def _forget_compiled(path: Path) -> None:
    """Remove the bytecode of a changed module.

    Python knows it by the second of the change and the size of the source: two changes within one second that leave
    the size as it was would start the code before the last one.
    """
    if path.suffix == ".py":
        with contextlib.suppress(OSError, NotImplementedError):  # none there, or none kept at all
            Path(cache_from_source(str(path))).unlink()


def _syntax_problem(path: Path) -> str | None:
    """What is wrong with a Python file that cannot even be compiled; `None` for everything else."""
    if path.suffix != ".py" or not path.is_file():
        return None
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return f"{path}:{line}: {getattr(error, 'msg', error)}"
    except OSError:
        return None
    return None


def _watched(file: DeploymentFile) -> tuple[Path, ...]:
    """The folders to watch, without those that lie in another one."""
    wanted = {file.folder.resolve()}
    for service in file.services:
        wanted |= {folder.resolve() for folder in service.watched_folders(file.folder)}
        wanted |= {(file.folder / env_file).resolve().parent for env_file in service.env_files}
    return tuple(sorted(_outermost(folder for folder in wanted if folder.is_dir())))


def _outermost(folders: Iterable[Path]) -> set[Path]:
    unique = set(folders)
    return {folder for folder in unique if not unique.intersection(folder.parents)}


class _Filter(watchfiles.BaseFilter):
    """Lets through Python files, the deployment file and the files of environment variables that it names by now."""

    def __init__(self, judge: _Judge) -> None:
        super().__init__()
        self._judge = judge
        self._file: DeploymentFile | None = None

    def _read(self, file: DeploymentFile) -> None:
        self._file = file
        self._named = {str(_place(file))}
        self._roots = _watched(file)
        for service in file.services:
            self._named |= {str((file.folder / env_file).resolve()) for env_file in service.env_files}

    def __call__(self, change: watchfiles.Change, path: str) -> bool:
        del change
        if self._file is not self._judge.file:
            self._read(self._judge.file)
        if path in self._named:
            return True
        if not path.endswith(".py"):
            return False
        return any(_is_code(Path(path), root) for root in self._roots)


def _is_code(path: Path, root: Path) -> bool:
    return path.is_relative_to(root) and not IGNORED_FOLDERS.intersection(path.relative_to(root).parts)
