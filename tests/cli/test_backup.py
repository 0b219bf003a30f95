"""`llamactl backup` and `llamactl restore`: what they print, and what they refuse."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.cli.conftest import Llamactl
from tests.support.postgres import database_url


def test_a_backup_is_made_and_restored(ctl: Llamactl, llamactl: Llamactl, tmp_path: Path) -> None:
    task_id = ctl("run", "shout", "-a", "text", "hello", "--no-wait").out.strip()
    ctl("tasks", "watch", task_id)
    file = tmp_path / "monday.db"
    made = ctl("backup", str(file), "-o", "json")
    assert made.code == 0, made.err
    assert made.json["file"] == str(file)
    assert made.json["bytes"] == file.stat().st_size
    assert made.json["tasks"] >= 1
    restored = llamactl("restore", str(file), "--store", str(tmp_path / "new.db"), "-o", "json")
    assert restored.code == 0, restored.err
    assert restored.json["tasks"] == made.json["tasks"]
    assert "llamactl serve" in restored.err
    with sqlite3.connect(tmp_path / "new.db") as connection:
        assert connection.execute("SELECT state FROM tasks WHERE task_id = ?", (task_id,)).fetchone() == ("completed",)
    connection.close()


def test_what_is_there_is_replaced_only_when_that_is_asked_for(
    ctl: Llamactl, llamactl: Llamactl, tmp_path: Path
) -> None:
    file = tmp_path / "monday.db"
    file.write_text("mine")
    refused = ctl("backup", str(file))
    assert refused.code == 2
    assert "there is a file" in refused.err
    assert file.read_text() == "mine"
    assert ctl("backup", str(file), "--replace", "-o", "name").out == f"{file}\n"
    store = tmp_path / "store.db"
    store.write_text("mine")
    refused = llamactl("restore", str(file), "--store", str(store))
    assert refused.code == 5
    assert "--replace" in refused.err
    assert store.read_text() == "mine"
    assert llamactl("restore", str(file), "--store", str(store), "--replace").code == 0


def test_where_nothing_can_be_written(ctl: Llamactl, tmp_path: Path) -> None:
    refused = ctl("backup", str(tmp_path / "missing" / "monday.db"))
    assert refused.code == 2
    assert "cannot be written" in refused.err


def test_without_a_server(llamactl: Llamactl, tmp_path: Path) -> None:
    refused = llamactl("-s", "http://127.0.0.1:9", "backup", str(tmp_path / "monday.db"))
    assert refused.code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_backup(llamactl: Llamactl, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("certainly not a database" * 500)
    refused = llamactl("restore", str(tmp_path / "notes"), "--store", str(tmp_path / "store.db"))
    assert refused.code == 2
    assert "LD407" in refused.err
    assert not (tmp_path / "store.db").exists()


def test_a_backup_is_put_into_a_database(ctl: Llamactl, llamactl: Llamactl, tmp_path: Path) -> None:
    file = tmp_path / "monday.db"
    assert ctl("backup", str(file)).code == 0
    with database_url() as url:
        given = url.replace("postgresql://postgres@", "postgresql://postgres:sesame@")
        restored = llamactl("restore", str(file), "--store", given, "-o", "json")
        assert restored.code == 0, restored.err
        assert restored.json["store"] == url
        assert "sesame" not in restored.out + restored.err
        again = llamactl("restore", str(file), "--store", given)
        assert again.code == 5
        assert "LD406" in again.err
        refused = llamactl("restore", str(file), "--store", given, "--replace")
        assert (refused.code, "drop the schema first" in refused.err) == (2, True)
