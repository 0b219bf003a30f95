"""`llamactl doctor` finds each cause that it knows, and names it by its code."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.cli.conftest import Llamactl, running, shout

from llama_deploy import _version
from llama_deploy.cli import checks
from llama_deploy.errors import TwoDistributionsError
from llama_deploy.types.access import AccessSettings, Scope, Token, digest_of

FILE = "name: x\ncontrol-plane: {{port: {port}}}\n{more}services:\n  s: {{import-path: 'm:s'}}\n"


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    token = Token(name="x", digest=digest_of("a-token-of-doctors-0123"), scopes=frozenset({Scope.READ}))
    with running(shout, access=AccessSettings(tokens=(token,))) as url:
        yield url


def file(folder: Path, more: str = "", port: int = 0) -> str:
    path = folder / "deployment.yml"
    path.write_text(FILE.format(port=port, more=more))
    return str(path)


def found(ran: Any, check: str) -> dict[str, Any]:
    """What a check has found."""
    (one,) = [item for item in ran.json["items"] if item["check"] == check]
    return dict(one)


def test_where_all_is_well_it_says_so(llamactl: Llamactl, server: str, tmp_path: Path) -> None:
    ran = llamactl("-s", server, "doctor", file(tmp_path), "-o", "json")
    assert ran.code == 0
    results = {item["check"]: item["result"] for item in ran.json["items"]}
    assert results == {
        **dict.fromkeys(("python", "packages", "deployment file", "port", "store", "disk"), "ok"),
        "broker": "skipped",
        **dict.fromkeys(("server", "version", "clock", "connection"), "ok"),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deployment.yml"]


def test_an_old_python_is_told() -> None:
    assert checks.python((3, 10, 9)).result == "failed"
    assert checks.python((3, 11, 0)).result == "ok"


def test_another_distribution_is_told(llamactl: Llamactl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_deploy.runtime.installed.two_distributions", lambda: TwoDistributionsError("two"))
    ran = llamactl("doctor", "--offline", "-o", "json")
    assert (ran.code, found(ran, "packages")["code"]) == (5, "LD109")


def test_a_file_that_is_wrong_is_told(llamactl: Llamactl, tmp_path: Path) -> None:
    ran = llamactl("doctor", "--offline", file(tmp_path, "colour: red\n"), "-o", "json")
    assert (ran.code, found(ran, "deployment file")["code"]) == (2, "LD101")
    ran = llamactl("doctor", "--offline", str(tmp_path / "gone.yml"), "-o", "json")
    assert (ran.code, found(ran, "deployment file")["code"]) == (2, "LD101")
    missing = file(tmp_path, "access: {tokens: {ci: {scopes: [run], env: NOT_THERE_AT_ALL}}}\n")
    assert (
        "NOT_THERE_AT_ALL" in found(llamactl("doctor", "--offline", missing, "-o", "json"), "deployment file")["what"]
    )


def test_a_port_in_use_is_told(llamactl: Llamactl, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = llamactl("doctor", "--offline", file(tmp_path, port=taken.getsockname()[1]), "-o", "json")
    assert (ran.code, found(ran, "port")["code"], found(ran, "port")["result"]) == (0, "LD103", "warning")


def test_what_the_deployment_itself_uses_is_no_trouble(llamactl: Llamactl, tmp_path: Path) -> None:
    with running(shout, name="x", store=tmp_path / "x.db") as url:
        path = file(tmp_path, "store: x.db\n", port=int(url.rpartition(":")[2]))
        ran = llamactl("doctor", path, "-o", "json")
        assert (ran.code, found(ran, "port")["result"], found(ran, "store")["result"]) == (0, "ok", "ok")
        assert "x listens" in found(ran, "port")["what"]
        other = Path(path)
        other.write_text(other.read_text().replace("name: x", "name: y"))
        ran = llamactl("doctor", path, "-o", "json")
        assert (found(ran, "port")["code"], found(ran, "store")["code"]) == ("LD103", "LD402")


def test_a_store_that_cannot_be_written_is_told(
    llamactl: Llamactl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _, **__: Path(path) != tmp_path)
    ran = llamactl("doctor", "--offline", file(tmp_path), "-o", "json")
    assert (ran.code, found(ran, "store")["code"]) == (3, "LD403")


def test_a_store_that_is_in_use_or_of_another_program_is_told(llamactl: Llamactl, tmp_path: Path) -> None:
    path = file(tmp_path, "store: x.db\n")
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("CREATE TABLE other (a)")
    connection.close()
    ran = llamactl("doctor", "--offline", path, "-o", "json")
    assert (ran.code, found(ran, "store")["code"]) == (2, "LD404")
    with (tmp_path / "x.db.lock").open("w+b") as held:
        held.write(b"4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = llamactl("doctor", "--offline", path, "-o", "json")
    store = found(ran, "store")
    assert (ran.code, store["code"], store["result"], "4711" in store["what"]) == (0, "LD402", "warning", True)


def test_a_full_disk_is_told(llamactl: Llamactl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    for free, result, code in ((0, "failed", 3), (1_000, "warning", 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free))
        ran = llamactl("doctor", "--offline", file(tmp_path), "-o", "json")
        assert (ran.code, found(ran, "disk")["result"], found(ran, "disk")["code"]) == (code, result, "LD401")


def test_a_broker_that_is_not_there_is_told(llamactl: Llamactl, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        path = file(tmp_path, f"message-queue: 'redis://:secret@127.0.0.1:{closed.getsockname()[1]}'\n")
        ran = llamactl("doctor", "--offline", path, "-o", "json")
    assert (ran.code, found(ran, "broker")["code"]) == (3, "LD301")
    assert "secret" not in ran.out + ran.err


def test_a_server_that_is_not_there_or_lets_nobody_in_is_told(llamactl: Llamactl, locked: str) -> None:
    for url, code, exit_code in (
        ("http://no.such.host.invalid:1", "LD321", 3),
        (locked, "LD250", 6),
        (locked.replace("http", "https"), "LD322", 3),
    ):
        ran = llamactl("-s", url, "doctor", "-o", "json")
        assert (ran.code, found(ran, "server")["code"]) == (exit_code, code)


def test_for_a_person_it_says_how_to_mend_it(llamactl: Llamactl, locked: str) -> None:
    ran = llamactl("-s", locked, "doctor")
    assert "server           FAILED  this control plane asks for a token" in ran.out
    assert "Fix:  llamactl --token-file FILE" in ran.err


def test_other_versions_and_other_times_are_told() -> None:
    assert checks._version({"version": _version.__version__}).result == "ok"
    assert checks._version({"version": "0.0.1"}).result == "warning"
    assert checks._clock({"now": 105.0}, 100.0, 101.0).result == "warning"
    assert checks._clock({"now": 95.0}, 100.0, 101.0).result == "warning"
    assert checks._clock({"now": 101.5}, 100.0, 101.0).result == "ok"
    assert checks._clock({}, 100.0, 101.0).result == "skipped"
