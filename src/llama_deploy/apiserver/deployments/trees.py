"""Trees of source files: copied, unpacked and compared, so that a version runs from files that nobody else changes.

What leads out of a tree is refused: links, names with `..`, devices. A tree is written beside its place and renamed
into it, so it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from llama_deploy.errors import LimitExceededError, SourceError

IGNORED_NAMES = frozenset(
    {".git", ".hg", ".svn", ".venv", "venv", ".llama_deploy", "__pycache__", "node_modules", ".tox"}
    | {".mypy_cache", ".pytest_cache", ".ruff_cache", ".idea", ".vscode", ".DS_Store"}
)
"""Names that are no part of a source, wherever they are."""
FILES_MAX = 20_000
TREE_BYTES_MAX = 512 * 1024 * 1024
_COPY_BYTES = 1024 * 1024


def files_of(root: Path) -> list[Path]:
    """The files of a source, relative to its root and sorted; a link within the tree counts as what it leads to.

    Raises `SourceError` for what leads out of the tree or is no file, and `LimitExceededError` for a tree that is too
    large.
    """
    base = root.resolve()
    found: list[Path] = []
    size = 0
    for path in _walk(root, base, frozenset({base})):
        found.append(path.relative_to(root))
        size += path.stat().st_size
        if len(found) > FILES_MAX or size > TREE_BYTES_MAX:
            raise LimitExceededError(
                f"the source {root} has more than {FILES_MAX} files or {TREE_BYTES_MAX} bytes",
                fix="put the deployment file into a folder of its own, with the code and nothing else",
                setting="source_files_max" if len(found) > FILES_MAX else "source_bytes_max",
                limit=FILES_MAX if len(found) > FILES_MAX else TREE_BYTES_MAX,
            )
    return sorted(found)


def _walk(folder: Path, base: Path, above: frozenset[Path]) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name in IGNORED_NAMES:
            continue
        if entry.is_symlink():
            real = path.resolve()
            if not real.is_relative_to(base):
                raise SourceError(f"{path} leads out of its source", why=f"it is a link to {path.readlink()}")
            if not real.exists() or real in above:
                raise SourceError(f"{path} leads nowhere", why=f"it is a link to {path.readlink()}")
        if entry.is_dir():
            real = path.resolve()
            yield from _walk(path, base, above | {real})
        elif entry.is_file():
            yield path
        elif entry.is_symlink() or not entry.name.endswith(".sock"):
            raise SourceError(f"{path} is no file", why="a source has files and folders only")


def digest_of(root: Path, files: list[Path]) -> dict[str, str]:
    """The hash of each file of a source."""
    return {file.as_posix(): _file_digest(root / file) for file in files}


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy_tree(root: Path, target: Path) -> dict[str, str]:
    """Copy a source to `target`, which has not been there; the hash of each file. Raises like `files_of`."""
    files = files_of(root)

    def fill(folder: Path) -> None:
        for file in files:
            place = folder / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, place)

    write_whole(target, fill)
    return digest_of(target, files)


def write_whole(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that is there whole or not at all: `fill` fills one beside it, which then takes its place.

    One that is there already stays, and what was filled goes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fill(partial)
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def pack(root: Path, stream: IO[bytes]) -> int:
    """Write a source as a compressed archive, the same bytes for the same files; how many there were."""
    files = files_of(root)
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=6) as archive:
        for file in files:
            member = archive.gettarinfo(root / file, arcname=file.as_posix())
            member.type = tarfile.REGTYPE  # a link within the tree goes along as what it leads to
            member.linkname = ""
            member.size = (root / file).stat().st_size
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            with (root / file).open("rb") as content:
                archive.addfile(member, content)
    return len(files)


def unpack(stream: IO[bytes], folder: Path, *, links: bool = False) -> None:
    """Unpack an archive, compressed or not, into an empty folder.

    Files and folders only, and with `links` symbolic ones that stay within the tree. Raises `SourceError` for
    anything else, for names that lead out of the folder and for what is no archive, and `LimitExceededError` for one
    that is too large when it is unpacked. The folder is to be thrown away then.
    """
    later: list[tuple[Path, str]] = []
    size = count = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                place = folder / _safe_name(member.name)
                count += 1
                size += max(0, member.size)
                if count > FILES_MAX or size > TREE_BYTES_MAX:
                    raise LimitExceededError(
                        f"the archive has more than {FILES_MAX} files or {TREE_BYTES_MAX} bytes",
                        setting="source_bytes_max",
                        limit=TREE_BYTES_MAX,
                    )
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                elif member.isreg():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    _write_member(archive, member, place)
                elif member.issym() and links:
                    later.append((place, member.linkname))
                else:
                    raise SourceError(
                        f"the archive has `{member.name}`, which is no file", why="links and devices are not taken"
                    )
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise SourceError("the archive cannot be read", why=str(error)) from error
    for place, leads_to in later:  # when all files are there: nothing is ever written through a link
        _link(folder, place, leads_to)


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    descriptor = os.open(
        place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o755 if member.mode & 0o100 else 0o644
    )
    with os.fdopen(descriptor, "wb") as target:
        shutil.copyfileobj(content, target, _COPY_BYTES)


def _safe_name(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise SourceError(f"the archive has the name `{name}`, which leads out of it")
    return path


def _link(folder: Path, place: Path, leads_to: str) -> None:
    base = folder.resolve()
    real = (place.parent / leads_to).resolve()
    if PurePosixPath(leads_to).is_absolute() or not real.is_relative_to(base):
        raise SourceError(f"`{place.relative_to(folder)}` leads out of its source", why=f"it is a link to {leads_to}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(leads_to)
