"""The command line against a server that asks for tokens and speaks TLS, end to end, and on bad networks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli.conftest import Llamactl, running, shout
from tests.support import PROCESS_S
from tests.support.certificates import Authority

from llama_deploy.types.access import AccessSettings, Scope, TLSFiles, Token, digest_of, with_implied

TEXTS = {scope: f"token-of-{scope.value}-0123456789" for scope in Scope}


@dataclass
class Door:
    """A server with tokens and TLS, the files of tokens, and the authority that it is signed by."""

    url: str
    ca: str
    tokens: dict[Scope, str]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    authority = Authority(folder)
    files = authority.sign("server", "127.0.0.1")
    tokens = tuple(
        Token(name=scope.value, digest=digest_of(text), scopes=with_implied([scope])) for scope, text in TEXTS.items()
    )
    paths = {}
    for scope, text in TEXTS.items():
        path = folder / scope.value
        path.write_text(text + "\n")
        paths[scope] = str(path)
    access = AccessSettings(tokens=tokens, tls=TLSFiles(certificate=files.certificate, key=files.key))
    with running(shout, access=access) as url:
        yield Door(url, str(authority.file), paths)


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMA_DEPLOY_TOKEN", "LLAMA_DEPLOY_TOKEN_FILE", "LLAMA_DEPLOY_CA_FILE", "LLAMACTL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_with_a_token_that_allows_it_a_task_runs(llamactl: Llamactl, door: Door) -> None:
    ran = llamactl(
        *("-s", door.url, "--ca-file", door.ca, "--token-file", door.tokens[Scope.RUN], "-q"),
        *("run", "shout", "-a", "text", "hello"),
    )
    assert (ran.code, ran.out) == (0, "HELLO\n")


@pytest.mark.parametrize(
    ("scope", "args", "expected"),
    [
        (None, ["status"], (6, "LD250")),
        (Scope.SERVE, ["status"], (6, "LD251")),
        (Scope.READ, ["status"], (0, "")),
        (Scope.READ, ["run", "shout", "-a", "text", "x"], (6, "LD251")),
        (Scope.RUN, ["services", "pause", "shout"], (6, "the scope `deploy`")),
        (Scope.DEPLOY, ["services", "resume", "shout"], (0, "")),
        (Scope.DEPLOY, ["backup", "copy.db"], (6, "the scope `admin`")),
    ],
)
def test_what_a_token_does_not_allow_ends_with_its_own_exit_code(
    llamactl: Llamactl, door: Door, scope: Scope | None, args: list[str], expected: tuple[int, str]
) -> None:
    shown = ["--token-file", door.tokens[scope]] if scope is not None else []
    ran = llamactl("-s", door.url, "--ca-file", door.ca, *shown, *args)
    assert ran.code == expected[0]
    assert expected[1] in ran.err
    assert not any(text in ran.out + ran.err for text in TEXTS.values())


def test_the_environment_and_a_profile_say_it_as_well(
    llamactl: Llamactl, door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAMACTL_CONFIG", str(tmp_path / "config.json"))
    for key, value in (("server", door.url), ("ca-file", door.ca), ("token-file", door.tokens[Scope.READ])):
        assert llamactl("-p", "door", "config", "set", key, value).code == 0
    assert llamactl("-p", "door", "status").code == 0
    assert llamactl("status").code == 0  # the first profile is the current one
    assert llamactl("-p", "door", "run", "shout", "-a", "text", "x").code == 6
    monkeypatch.setenv("LLAMA_DEPLOY_TOKEN", TEXTS[Scope.RUN])
    assert llamactl("-q", "run", "shout", "-a", "text", "x").out == "X\n"


def test_no_list_of_processes_shows_a_token(door: Door) -> None:
    command = [sys.executable, "-m", "llama_deploy.cli", "-s", door.url, "--ca-file", door.ca, "tasks", "list"]
    environment = {**os.environ, "LLAMA_DEPLOY_TOKEN": TEXTS[Scope.READ]}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        shown = b""
        while b"tasks" not in shown and process.poll() is None:  # until it has become that program
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        _, err = process.communicate(timeout=PROCESS_S)
    assert process.returncode == 0, err
    assert b"tasks" in shown
    assert TEXTS[Scope.READ].encode() not in shown + err


def test_a_certificate_that_is_not_believed_is_told_and_k_believes_it(llamactl: Llamactl, door: Door) -> None:
    shown = ["-s", door.url, "--token-file", door.tokens[Scope.READ]]
    ran = llamactl(*shown, "status")
    assert (ran.code, "LD322" in ran.err, "--ca-file" in ran.err) == (3, True, True)
    assert llamactl(*shown, "-k", "status").code == 0


def test_doctor_knows_a_server_that_speaks_tls_from_one_that_is_not_there(llamactl: Llamactl, door: Door) -> None:
    ran = llamactl("-s", door.url.replace("https", "http"), "doctor")
    assert ran.code == 3
    assert "speaks TLS" in ran.out
    assert f"llamactl -s {door.url}" in ran.err


@pytest.mark.parametrize("command", [["status"], ["run", "shout"], ["tasks", "list"]])
def test_a_name_without_an_address_is_told(llamactl: Llamactl, command: list[str]) -> None:
    ran = llamactl("-s", "http://no.such.host.invalid:8000", *command)
    assert ran.code == 3
    assert "LD321" in ran.err
    assert "its name has no address" in ran.err


@pytest.mark.parametrize("command", [["status"], ["tasks", "list"], ["services", "list"]])
def test_a_server_that_hangs_is_waited_for_no_longer_than_said(llamactl: Llamactl, command: list[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        ran = llamactl("-s", f"http://127.0.0.1:{listener.getsockname()[1]}", "-t", "0.3", *command)
    assert ran.code == 3
    assert "LD320" in ran.err
    assert "in 0.3 s" in ran.err


def test_a_token_is_made_for_the_file_and_its_hash_found_again(
    llamactl: Llamactl, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    made = llamactl("tokens", "create", "ci", "--scope", "run", "--scope", "deploy", "-o", "json").json
    assert made["scopes"] == ["run", "deploy"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(made["token"].encode())))
    assert llamactl("tokens", "hash").out == made["hash"] + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"short")))
    refused = llamactl("tokens", "hash")
    assert (refused.code, "no usable token" in refused.err) == (2, True)
