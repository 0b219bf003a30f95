"""What one version of a deployment runs from: a folder with its files, and a note of where everything else is.

The folder is named after the digest of all that went into it and never changes, so a version that is rolled back to is
what it was. Making one starts nothing and imports no code of the user's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from llama_deploy.apiserver.deployment_file import parse_deployment_file
from llama_deploy.apiserver.deployments import pages
from llama_deploy.apiserver.deployments.commands import Commands
from llama_deploy.apiserver.deployments.environments import Environments
from llama_deploy.apiserver.deployments.git import GitSources
from llama_deploy.apiserver.deployments.trees import copy_tree, digest_of, files_of, unpack
from llama_deploy.apiserver.loader import check_no_images
from llama_deploy.apiserver.specs import DeploymentFile, ServiceSpec, SourceSpec
from llama_deploy.errors import SourceError
from llama_deploy.runtime.lifeline import Guard

NOTE = "version.json"
TREE = "tree"


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What somebody wants to run: a deployment file, and where the files are that it speaks of."""

    source: bytes
    """The deployment file."""
    file_name: str = "deployment.yml"
    folder: Path | None = None
    """The folder on this machine that paths of the file start from."""
    archive: IO[bytes] | None = None
    """The files of that folder, packed (`trees.pack`), where it is on another machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the code of one service is, and which Python runs it."""

    folder: Path | None = None
    """`None`: where the deployment file says, within the version's own files."""
    python: Path | None = None
    """`None`: the one that runs this program."""
    commit: str | None = None
    """The commit that the code is of, where it comes from git."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A version that can run."""

    folder: Path
    digest: str
    file: DeploymentFile
    """With the code of every service at its place on this machine."""
    places: Mapping[str, Place] = field(default_factory=dict)
    page: pages.Page | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """The hash of each file that belongs to it, by its path."""

    @property
    def tree(self) -> Path:
        """The folder that paths of the deployment file start from."""
        return self.folder / TREE

    def service(self, name: str) -> ServiceSpec:
        """A service of it. Raises `KeyError`."""
        return self.file.service(name)

    def place(self, name: str) -> Place:
        """Where a service is."""
        return self.places.get(name, Place())


class Versions:
    """The versions of all deployments below one folder."""

    def __init__(self, data: Path, guard: Guard) -> None:
        self._root = data / "versions"
        self._staging = data / "staging"
        self._nothing = data / "nothing"
        """The folder of services whose code is a package: there is nothing in it."""
        self._trees, self._pythons = data / "trees", data / "environments"
        self._commands = Commands(guard)
        self._git = GitSources(self._trees, self._commands)
        self._environments = Environments(self._pythons, self._commands)
        self._making = 0
        self._new: list[str] = []
        """Folders of versions that are made, and of which whoever asked for them does not know yet."""

    def clear_staging(self) -> None:
        """Remove what a crash has left half made."""
        shutil.rmtree(self._staging, ignore_errors=True)
        self._git.clear()

    async def make(self, offer: Offer) -> Version:
        """Make a version of what is offered; the same offer makes the same version.

        Raises `DeploymentFileError`, `SourceError`, `EnvironmentBuildError` and `LimitExceededError`; nothing is left
        then.
        """
        staged = await asyncio.to_thread(self._stage)
        self._making += 1
        new: list[str] = []
        try:
            tree = staged / TREE
            files = await asyncio.to_thread(_take_in, offer, tree)
            file = parse_deployment_file(offer.source, tree / offer.file_name)
            check_no_images(file)
            _check_paths(file, tree)
            places = await self._places(file)
            page, commit = await self._page(file, staged)
            digest = _digest(offer, files, places, commit)
            note = {"file": offer.file_name, "digest": digest, "files": files, "places": _as_json(places), "page": page}
            (tree / offer.file_name).write_bytes(offer.source)
            (staged / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
            new.append(f"{file.name}-{digest[:20]}")
            self._new += new
            self._keep(staged, self._root / new[0])
            return self.open(file.name, digest)
        finally:
            try:
                await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)
            finally:
                self._making -= 1
                for name in new:
                    self._new.remove(name)

    def _stage(self) -> Path:
        self._staging.mkdir(parents=True, exist_ok=True)
        self._nothing.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._staging))

    async def _places(self, file: DeploymentFile) -> dict[str, Place]:
        """Fetch what has to be fetched, and make the environments; services that want the same share it."""
        return {service.name: await self._place(service, file.folder) for service in file.services}

    async def _place(self, service: ServiceSpec, base_folder: Path) -> Place:
        folder = commit = python = None
        source, dependencies = service.source, service.python_dependencies
        if source is not None and source.type == "git":
            folder, commit = await self._fetch(source, base_folder)
        elif source is not None:
            folder, dependencies = self._nothing, (source.location, *dependencies)
        if dependencies:
            python = await self._environments.build(dependencies, folder or service.code_folder(base_folder))
        return Place(folder=folder, python=python, commit=commit)

    async def _fetch(self, source: SourceSpec, base_folder: Path) -> tuple[Path, str]:
        """What a source from git names now, with what gets into it."""
        token, key = (one.read(base_folder) if one is not None else None for one in (source.token, source.ssh_key))
        return await self._git.fetch(source, token, key)

    async def _page(self, file: DeploymentFile, staged: Path) -> tuple[dict[str, Any] | None, str | None]:
        """Build the page, if there is one: what is to be known of it, and the commit that it is of."""
        spec, commit = file.page, None
        if spec is None:
            return None, None
        source = file.folder / (spec.source_folder or "")
        if spec.source is not None:
            source, commit = await self._fetch(spec.source, file.folder)
        page = await pages.build(
            spec,
            file.name,
            source=source,
            target=staged / pages.FOLDER,
            base_folder=file.folder,
            commands=self._commands,
        )
        return {"folder": str(page.folder.relative_to(staged)), "command": list(page.command)}, commit

    def _keep(self, staged: Path, folder: Path) -> None:
        """Put a version in its place, at once; one that is there already is the same."""
        self._root.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            staged.rename(folder)

    def open(self, name: str, digest: str) -> Version:
        """A version that was made earlier. Raises `OSError` where it is gone."""
        return open_version(self._root / f"{name}-{digest[:20]}")

    def prune(self, kept: set[tuple[str, str]]) -> None:
        """Remove the folders of versions that nobody speaks of any more; `kept` are names and digests."""
        names = {*self._new, *(f"{name}-{digest[:20]}" for name, digest in kept)}
        _remove_others(self._root, names)
        if self._making:  # what is fetched for it is spoken of by nobody yet
            return
        places = [place for name in names for place in self._places_in(name)]
        _remove_others(self._trees, {place.folder.name for place in places if place.folder is not None})
        _remove_others(self._pythons, {place.python.parent.parent.name for place in places if place.python is not None})

    def _places_in(self, name: str) -> list[Place]:
        try:
            note = json.loads((self._root / name / NOTE).read_text(encoding="utf-8"))
        except OSError:
            return []
        return [_place(one) for one in note["places"].values()]


def _remove_others(root: Path, names: set[str]) -> None:
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.name not in names:
            shutil.rmtree(folder, ignore_errors=True)


def open_version(folder: Path) -> Version:
    """The version in a folder. Raises `OSError` where there is none."""
    note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    path = folder / TREE / note["file"]
    file = parse_deployment_file(path.read_bytes(), path)
    places = {name: _place(one) for name, one in note["places"].items()}
    services = tuple(
        replace(service, source_folder=place.folder) if (place := places[service.name]).folder else service
        for service in file.services
    )
    return Version(
        folder=folder,
        digest=note["digest"],
        file=replace(file, services=services),
        places=places,
        files=note["files"],
        page=_read_page(note.get("page"), folder),
    )


def _read_page(note: dict[str, Any] | None, folder: Path) -> pages.Page | None:
    return pages.Page(folder=folder / note["folder"], command=tuple(note["command"])) if note is not None else None


def _take_in(offer: Offer, tree: Path) -> dict[str, str]:
    """Have the files of an offer in a folder of their own; the hash of each."""
    if offer.archive is not None:
        tree.mkdir(parents=True)
        unpack(offer.archive, tree)
        return digest_of(tree, files_of(tree))
    if offer.folder is not None:
        return copy_tree(offer.folder, tree)
    tree.mkdir(parents=True)
    return {}


def _check_paths(file: DeploymentFile, tree: Path) -> None:
    """Raise `SourceError` for what the deployment file names outside of its own folder: only that goes along."""
    named: list[tuple[str, Path]] = []
    for service in file.services:
        code = Path(service.source_folder or "")
        where = Path(service.import_path.rpartition(":")[0])
        named += [(f"the source of {service.name}", code), (f"the import path of {service.name}", code / where)]
        named += [(f"the path of {service.name}", code / service.path)] if service.path is not None else []
        named += [(f"an env-file of {service.name}", one) for one in service.env_files]
    if file.page is not None and file.page.source_folder is not None:
        named.append(("the source of the page", file.page.source_folder))
    if file.encryption_key_file is not None:
        named.append(("the encryption-key-file", Path(file.encryption_key_file)))
    for what, path in named:
        if not (tree / path).resolve().is_relative_to(tree.resolve()):
            raise SourceError(
                f"{what} leads out of the folder of the deployment file",
                why=f"{path}",
                fix="move the deployment file up, so that all it names lies below it",
            )


def _digest(offer: Offer, files: Mapping[str, str], places: Mapping[str, Place], page_commit: str | None) -> str:
    everything = [offer.file_name, hashlib.sha256(offer.source).hexdigest(), sorted(files.items()), _as_json(places)]
    everything += [page_commit] if page_commit is not None else []
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _as_json(places: Mapping[str, Place]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "folder": str(place.folder) if place.folder is not None else None,
            "python": str(place.python) if place.python is not None else None,
            "commit": place.commit,
        }
        for name, place in places.items()
    }


def _place(note: dict[str, Any]) -> Place:
    folder, python = note["folder"], note["python"]
    return Place(
        folder=Path(folder) if folder else None, python=Path(python) if python else None, commit=note["commit"]
    )
