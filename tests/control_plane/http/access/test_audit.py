"""The audit log's files: their size and rights, what is left out, and what happens when they cannot be written."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.control_plane.http.access.audit import TEXT_CHARACTERS_MAX, UNKNOWN_PER_SECOND_MAX, Audit, Entry
from llama_deploy.types.access import AuditSettings


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ENTRY = Entry("ci", "POST", "/v1/tasks", "127.0.0.1", "201")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


async def test_it_is_appended_to_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "made" / "audit.jsonl"
    for _ in range(2):
        audit = Audit(AuditSettings(file=file))
        audit.write(ENTRY)
        audit.close()
    assert len(lines(file)) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_files_are_put_aside_by_size_and_so_many_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = Audit(AuditSettings(file=file, bytes_max=1000, files=2))
    for number in range(100):
        audit.write(Entry("ci", "POST", f"/{number}", "::1", "201"))
        audit.flush()
    audit.close()
    names = names_in(tmp_path)
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(path.stat().st_size <= 1000 for path in (tmp_path / name for name in names))
    kept = [line["target"] for name in reversed(names) for line in lines(tmp_path / name)]
    assert kept == [f"/{number}" for number in range(100 - len(kept), 100)]
    assert len(kept) > 15


async def test_standard_output_is_a_place_and_nothing_is_put_aside(capfd: pytest.CaptureFixture[str]) -> None:
    audit = Audit(AuditSettings(file=None, bytes_max=100, files=2))
    for _ in range(3):
        audit.write(ENTRY)
        audit.flush()
    audit.close()
    assert [json.loads(line)["who"] for line in capfd.readouterr().out.splitlines()] == ["ci"] * 3
    os.write(1, b"and it is open still")
    assert capfd.readouterr().out == "and it is open still"


async def test_what_others_write_is_cut_and_begins_no_line(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = Audit(AuditSettings(file=file))
    audit.write(Entry("ci", "GET", '/x\n{"who":"admin"}\x1b[31m' + "y" * 10_000, "::1", "404"))
    audit.close()
    (line,) = lines(file)
    assert len(line["target"]) == TEXT_CHARACTERS_MAX
    assert b"\x1b" not in file.read_bytes()


async def test_strangers_cannot_fill_it(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    second = [1_000]
    audit = Audit(AuditSettings(file=file), now=lambda: datetime.fromtimestamp(second[0], UTC))
    for _ in range(100):
        audit.write(Entry("unknown", "GET", "/", "::1", "401 LD250"), unknown=True)
    audit.write(ENTRY)
    second[0] += 1
    audit.write(Entry("unknown", "GET", "/", "::1", "401 LD250"), unknown=True)
    audit.close()
    found = lines(file)
    assert [line["who"] for line in found].count("unknown") == UNKNOWN_PER_SECOND_MAX + 2
    assert found[-2]["count"] == 100 - UNKNOWN_PER_SECOND_MAX
    assert found[UNKNOWN_PER_SECOND_MAX]["who"] == "ci"


async def test_where_it_cannot_be_written_work_goes_on_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    audit = Audit(AuditSettings(file=blocked / "audit.jsonl"))
    audit.write(ENTRY)
    audit.flush()
    audit.write(ENTRY)
    audit.flush()
    assert caplog.text.count("the audit log cannot be written") == 1


async def test_without_settings_nothing_is_written(tmp_path: Path) -> None:
    audit = Audit(None)
    audit.write(ENTRY)
    audit.close()
    assert not audit.on
    assert names_in(tmp_path) == []
