"""`llamactl artifacts`, and files as arguments of `llamactl run`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Llamactl


def test_a_file_is_stored_and_fetched(ctl: Llamactl, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,2\n")
    stored = ctl("artifacts", "put", str(tmp_path / "a.csv"), "-o", "json")
    assert stored.code == 0
    artifact = json.loads(stored.out)
    assert (artifact["name"], artifact["media_type"], artifact["size_bytes"]) == ("a.csv", "text/csv", 4)
    got = ctl("artifacts", "get", json.dumps(artifact), "-O", str(tmp_path / "b.csv"))
    assert got.code == 0
    assert got.out.strip() == str(tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_bytes() == b"1,2\n"
    assert ctl("artifacts", "get", artifact["$artifact"], "-O", str(tmp_path / "c")).code == 0
    assert (tmp_path / "c").read_bytes() == b"1,2\n"


def test_what_cannot_be_done_is_told(ctl: Llamactl, tmp_path: Path) -> None:
    assert ctl("artifacts", "get", "0" * 64).code == 4
    assert ctl("artifacts", "get", "nonsense").code == 2
    assert ctl("artifacts", "put", str(tmp_path / "none")).code == 2


def test_a_file_is_an_argument(ctl: Llamactl, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello")
    ran = ctl("run", "size", "--file", "data", str(tmp_path / "a.txt"), "-a", "times", "2")
    assert ran.code == 0, ran.err
    assert ran.out.strip() == "10"
    assert ctl("run", "size", "--file", "data", str(tmp_path / "none")).code == 2
    assert ctl("run", "size", "-i", "5", "--file", "data", str(tmp_path / "a.txt")).code == 2
