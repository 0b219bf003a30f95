"""Trees of source files: what is copied and packed, and what leads out of them and is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.apiserver.deployments import trees
from llama_deploy.errors import LimitExceededError, SourceError


def archive(*members: tuple[str, bytes | None, dict[str, Any]]) -> io.BytesIO:
    """An archive with these members: name, content, and fields of its header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        for name, content, fields in members:
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            for field, value in fields.items():
                setattr(member, field, value)
            made.addfile(member, io.BytesIO(content or b""))
    stream.seek(0)
    return stream


def test_a_tree_is_packed_and_unpacked_as_it_is_without_what_is_no_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.py").write_text("a")
    (source / "sub" / "b.txt").write_text("b")
    (source / "link.py").symlink_to("a.py")
    for ignored in (".git", "__pycache__", ".venv"):
        (source / ignored).mkdir()
        (source / ignored / "x").write_text("x")
    stream = io.BytesIO()
    assert trees.pack(source, stream) == 3
    stream.seek(0)
    target = tmp_path / "target"
    target.mkdir()
    trees.unpack(stream, target)
    copied = trees.copy_tree(source, tmp_path / "copy")
    assert copied == trees.digest_of(target, trees.files_of(target))
    assert sorted(copied) == ["a.py", "link.py", "sub/b.txt"]
    assert not (target / "link.py").is_symlink()


@pytest.mark.parametrize("leads_to", ["/etc/passwd", "../outside.txt", "nowhere", "."])
def test_a_link_out_of_a_source_or_into_itself_is_refused(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    source = tmp_path / "source"
    source.mkdir()
    (source / "link").symlink_to(leads_to)
    with pytest.raises(SourceError):
        trees.copy_tree(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(SourceError):
        trees.pack(source, io.BytesIO())


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", b"x", {})],
        [("/evil", b"x", {})],
        [("a/../../evil", b"x", {})],
        [("evil", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"})],
        [("evil", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})],
        [("evil", b"", {"type": tarfile.CHRTYPE})],
        [("evil", b"", {"type": tarfile.FIFOTYPE})],
        [("twice", b"x", {}), ("twice", b"y", {})],
    ],
    ids=["parent", "absolute", "within", "link", "hard link", "device", "pipe", "twice"],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, members: list[tuple[str, bytes | None, dict[str, Any]]]) -> None:
    with pytest.raises(SourceError):
        trees.write_whole(tmp_path / "tree", lambda folder: trees.unpack(archive(*members), folder))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("leads_to", ["../../outside", "/etc/passwd"])
def test_links_of_a_repository_stay_within_it(tmp_path: Path, leads_to: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    good = archive(("a.py", b"a", {}), ("sub/good", b"", {"type": tarfile.SYMTYPE, "linkname": "../a.py"}))
    trees.unpack(good, tree, links=True)
    assert (tree / "sub" / "good").read_text() == "a"
    bad = archive(("bad", b"", {"type": tarfile.SYMTYPE, "linkname": leads_to}))
    with pytest.raises(SourceError):
        trees.unpack(bad, tree, links=True)


def test_nothing_is_written_through_a_link_of_the_same_archive(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = tmp_path / "tree"
    tree.mkdir()
    link: tuple[str, bytes | None, dict[str, Any]] = ("sub", b"", {"type": tarfile.SYMTYPE, "linkname": "../outside"})
    with pytest.raises(SourceError):
        trees.unpack(archive(link, ("sub/evil", b"x", {})), tree, links=True)
    assert list(outside.iterdir()) == []


def test_what_is_no_archive_and_what_is_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError):
        trees.unpack(io.BytesIO(b"no archive at all"), tmp_path)
    cut = archive(("a", b"x" * 100_000, {})).getvalue()[:60]
    with pytest.raises(SourceError):
        trees.unpack(io.BytesIO(cut), tmp_path / "cut")
    monkeypatch.setattr(trees, "TREE_BYTES_MAX", 1000)
    with pytest.raises(LimitExceededError):
        trees.unpack(archive(("bomb", b"\0" * 100_000, {})), tmp_path)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(b"\0" * 2000)
    with pytest.raises(LimitExceededError):
        trees.copy_tree(tmp_path / "large", tmp_path / "copy")
