"""The published command lines, told to a control plane: `-d` names the deployment that it is, `-s` the service."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Llamactl

from llama_deploy.cli import api_calls
from llama_deploy.client import SyncClient


@pytest.mark.parametrize(
    "words",
    [
        ("run", "-d", "default", "-s", "shout", "-a", "text", "hi"),
        ("run", "--deployment", "default", "--service", "shout", "--arg", "text", "hi"),
        ("run", "-d", "default", "shout", "-a", "text", "hi"),
    ],
    ids=" ".join,
)
def test_a_task_runs_at_the_server_that_is_named_first(ctl: Llamactl, words: tuple[str, ...]) -> None:
    ran = ctl(*words)
    assert (ran.code, ran.out) == (0, "HI\n"), ran.err


@pytest.mark.parametrize("option", ["-i", "--session-id", "--session"])
def test_a_task_runs_in_a_session_that_was_made_before(server: str, ctl: Llamactl, option: str) -> None:
    made = ctl("sessions", "create", "-d", "default", "-o", "name")
    assert made.code == 0, made.err
    session_id = made.out.strip()
    ran = ctl("run", "-d", "default", "-s", "shout", "-a", "text", "hi", option, session_id)
    assert (ran.code, ran.out) == (0, "HI\n"), ran.err
    with SyncClient(server) as client:
        assert client.get_session(session_id).task_count == 1


def test_a_deployment_that_is_not_there_exits_with_4(ctl: Llamactl) -> None:
    for words in (("run", "-d", "other", "-s", "shout"), ("sessions", "create", "-d", "other")):
        ran = ctl(*words)
        assert (ran.code, ran.out) == (4, "")
        assert ran.err.startswith("Error LD240: there is no deployment 'other'")
        assert "'default'" in ran.err


def test_two_services_are_one_too_many(ctl: Llamactl) -> None:
    for words in (("run", "count", "--service", "shout"), ("run", "count", "-d", "default", "-s", "shout")):
        ran = ctl(*words)
        assert ran.code == 2
        assert "Name the service once" in ran.err


def test_a_server_after_the_command_is_still_one(server: str, llamactl: Llamactl) -> None:
    ran = llamactl("run", "-s", server, "-d", "default", "--service", "shout", "-a", "text", "hi")
    assert (ran.code, ran.out) == (0, "HI\n"), ran.err


TREE = {
    "": """init dev serve deploy deployments run tasks services queues sessions logs status doctor explain open config
        completion version""",
    "tasks": "list get watch events send cancel retry replay pause resume export import",
    "queues": "list peek dead redrive purge",
    "sessions": "create list get",
    "config": "current-profile delete-profile get-profiles rename-profile set-profile-vars use-profile show",
}


@pytest.mark.parametrize("group", TREE)
def test_every_command_of_the_tree_is_there_and_knows_the_common_options(llamactl: Llamactl, group: str) -> None:
    for name in TREE[group].split():
        words = [*group.split(), name]
        ran = llamactl(*words, "--help")
        assert (ran.code, ran.err) == (0, ""), words
        assert f"Usage: llamactl {' '.join(words)}" in ran.out


@pytest.mark.parametrize(
    "words",
    [
        ("-s", "URL", "-k", "-t", "3", "-p", "x", "deploy", "FILE", "--reload", "--base-path", "FOLDER"),
        ("run", "-d", "D", "-s", "S", "-a", "K", "V", "-a", "K2", "V2", "-i", "SESSION"),
        ("status",),
        ("sessions", "create", "-d", "D"),
        ("serve", "FILE"),
        ("init",),
    ],
    ids=" ".join,
)
def test_the_published_command_lines_can_be_read(llamactl: Llamactl, words: tuple[str, ...]) -> None:
    assert llamactl(*words, "--help").code == 0  # which is looked at once everything else was understood
    wrong = llamactl(*words, "--no-such-option")
    assert (wrong.code, "No such option '--no-such-option'" in wrong.err) == (2, True), wrong.err


def test_a_control_plane_has_no_page_to_open(server: str, ctl: Llamactl) -> None:
    ran = ctl("open")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"Error LD241: the control plane at {server} has no page")
    assert "the key `ui`" in ran.err
    assert "  Fix:  " in ran.err


def test_a_control_plane_within_a_program_keeps_no_log(ctl: Llamactl) -> None:
    ran = ctl("logs")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Error LD241: this control plane keeps no log")


def test_without_an_api_server_d_means_the_control_plane_of_this_machine(
    server: str, llamactl: Llamactl, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    """As `llamactl serve FILE` in one terminal and `llamactl run -d NAME` in another."""
    nowhere = f"http://127.0.0.1:{free_port}"
    monkeypatch.setattr(api_calls, "API_SERVER", nowhere)
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", server)
    ran = llamactl("run", "-d", "default", "-s", "shout", "-a", "text", "hi")
    assert (ran.code, ran.out) == (0, "HI\n"), ran.err
    for name, said in (("default", nowhere), ("other", "")):
        more = ("-s", said) if said else ()
        ran = llamactl(*more, "run", "-d", name, "--service", "shout")
        assert (ran.code, ran.err.splitlines()[0]) == (3, f"Error LD301: cannot reach the API server at {nowhere}")


def test_the_published_words_for_profiles_mean_ours(llamactl: Llamactl, tmp_path: Path) -> None:
    file = str(tmp_path / "profiles.json")

    def config(*words: str) -> str:
        ran = llamactl("-c", file, "config", *words)
        assert ran.code == 0, ran.err
        return ran.out

    config("set-profile-vars", "server", "http://127.0.0.1:9")
    config("set-profile-vars", "timeout", "3")
    assert config("current-profile") == "default\n"
    config("rename-profile", "default", "work")
    assert config("get-profiles", "-o", "name") == "work\n"
    config("use-profile", "work")
    assert "request-timeout" in config("show", "--origin")
    config("delete-profile", "work")
    assert config("list", "-o", "name") == ""
    for words, said in (
        (("current-profile",), "no profile is the current one"),
        (("delete-profile", "x"), "there is no profile 'x'"),
        (("rename-profile", "x", "y"), "there is no profile 'x'"),
    ):
        ran = llamactl("--config", file, "config", *words)
        assert (ran.code, said in ran.err) == (2, True)


def test_the_published_timeout_stands_before_the_command(llamactl: Llamactl) -> None:
    ran = llamactl("--timeout", "7", "config", "show", "-o", "json")
    assert ran.json["request-timeout"] == 7.0
