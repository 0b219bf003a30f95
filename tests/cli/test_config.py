"""Profiles: what is kept, who may read it, what wins over what, and where a token goes."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import click
import pytest
from tests.cli.conftest import Llamactl

from llama_deploy.cli.app import root
from llama_deploy.cli.settings import Settings, resolve
from llama_deploy.runtime.credentials import new_token

TOKEN = new_token()


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings" / "config.json"
    monkeypatch.setenv("LLAMACTL_CONFIG", str(path))
    for name in ("LLAMA_DEPLOY_TOKEN", "LLAMA_DEPLOY_TOKEN_FILE", "LLAMA_DEPLOY_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{TOKEN}\n".encode())))


def in_force(**own: object) -> Settings:
    given = {"server": None, "output": None, "quiet": None, "profile": None, "token_file": None, "ca_file": None}
    with click.Context(root) as ctx:
        return resolve(ctx, **{**given, "insecure": None, "request_timeout": None, **own})


def test_a_profile_is_made_shown_used_and_removed(llamactl: Llamactl, file: Path) -> None:
    assert "No profiles yet: llamactl config set server URL" in llamactl("config", "list").err
    assert llamactl("config", "set", "server", "http://one.example:8000/").code == 0
    assert llamactl("-p", "two", "config", "set", "server", "https://two.example").code == 0
    found = llamactl("config", "list", "-o", "json").json["items"]
    assert [(item["name"], item["server"], item["current"]) for item in found] == [
        ("default", "http://one.example:8000", True),
        ("two", "https://two.example", False),
    ]
    assert llamactl("config", "use", "two").code == 0
    assert in_force().server == "https://two.example"
    assert in_force(profile="default").server == "http://one.example:8000"
    assert llamactl("-p", "two", "config", "unset", "server").code == 0
    assert in_force().server == "http://127.0.0.1:8000"
    assert llamactl("-p", "two", "config", "unset").code == 0
    assert llamactl("config", "list", "-o", "name").out == "default\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.usefixtures("say")
def test_a_token_comes_from_standard_input_is_kept_for_one_person_and_shown_nowhere(
    llamactl: Llamactl, file: Path
) -> None:
    ran = llamactl("config", "set", "token", TOKEN)
    assert (ran.code, TOKEN in ran.err) == (2, False)
    llamactl("config", "set", "server", "https://one.example")
    ran = llamactl("config", "set", "token")
    assert ran.code == 0
    shown = [llamactl("config", *args) for args in (["list", "-o", "json"], ["show"], ["show", "--origin"])]
    assert all(TOKEN not in one.out + one.err for one in [ran, *shown])
    assert TOKEN in file.read_text()
    assert TOKEN not in repr(in_force())
    assert in_force().token == TOKEN
    file.chmod(0o644)
    refused = llamactl("config", "list")
    assert (refused.code, "chmod 600" in refused.err) == (2, True)


@pytest.mark.usefixtures("say")
def test_a_token_goes_to_the_server_that_it_was_given_for_alone(
    llamactl: Llamactl, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamactl("config", "set", "server", "https://one.example")
    llamactl("config", "set", "token")
    assert in_force(server="https://other.example").token is None
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", "https://other.example")
    assert (in_force().server, in_force().token) == ("https://other.example", None)
    named = in_force(profile="default")
    assert (named.server, named.token) == ("https://one.example", TOKEN)


def test_options_win_over_a_named_profile_over_variables_over_the_current_profile(
    llamactl: Llamactl, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamactl("config", "set", "server", "http://profile:1")
    llamactl("config", "set", "request-timeout", "7")
    assert in_force().timeout_s == 7
    assert not in_force().server_given
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", "http://variable:1")
    monkeypatch.setenv("LLAMA_DEPLOY_TOKEN", "of-the-environment-01234")
    assert in_force().server == "http://variable:1"
    assert in_force(profile="default").server == "http://profile:1"
    assert in_force(profile="default", server="http://option:1").server == "http://option:1"
    assert in_force(token_file="a").token is None
    assert in_force(token_file="a").token_file == "a"
    origins = in_force(output="wide").origins
    assert origins["server"] == "LLAMA_DEPLOY_CONTROL_PLANE_URL"
    assert origins["request-timeout"] == "profile default"
    assert origins["output"] == "option"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["set", "sever", "x"], "Did you mean 'server'?"),
        (["set", "server"], "Give a value"),
        (["set", "server", "ftp://x"], "is not the URL of a control plane"),
        (["set", "request-timeout", "soon"], "give seconds"),
        (["set", "insecure", "perhaps"], "say true or false"),
        (["set", "output", "xml"], "use one of"),
        (["use", "nobody"], "there is no profile 'nobody'"),
        (["unset"], "Name a profile"),
    ],
)
def test_what_cannot_be_kept_is_refused(llamactl: Llamactl, file: Path, args: list[str], told: str) -> None:
    ran = llamactl("config", *args)
    assert ran.code == 2
    assert told in ran.err
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"profiles": []}', '{"profiles": {"a": {"colour": "red"}}}', "\xff"])
def test_a_file_that_is_none_is_told(llamactl: Llamactl, file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_bytes(text.encode("latin-1"))
    ran = llamactl("status")
    assert ran.code == 2
    assert str(file) in ran.err


def test_a_shell_gets_its_words(llamactl: Llamactl, monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, mark in (("bash", "complete -o nosort"), ("zsh", "#compdef llamactl"), ("fish", "complete --no-files")):
        ran = llamactl("completion", shell)
        assert ran.code == 0
        assert mark in ran.out
        assert "_LLAMACTL_COMPLETE" in ran.out
    monkeypatch.setenv("_LLAMACTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "llamactl tasks w")
    monkeypatch.setenv("COMP_CWORD", "2")
    ran = llamactl()
    assert (ran.code, ran.out.split()) == (0, ["plain,watch"])
