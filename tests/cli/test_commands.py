"""What each command prints on which stream, and the code that it exits with, against a real control plane."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.conftest import STARTED, Llamactl, ask_clerk
from tests.support import PROCESS_S

from llama_deploy.apiserver import load_deployment_file
from llama_deploy.cli.status import _text as status_text
from llama_deploy.client import SyncClient


def stdin(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))


# --- the root ---------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_in_order(llamactl: Llamactl) -> None:
    ran = llamactl("--help")
    assert ran.code == 0
    words = [line.split()[0] for line in ran.out.split("Commands:\n")[1].splitlines() if line.startswith("  ")]
    assert words[:6] == ["init", "dev", "serve", "run", "graph", "status"]


@pytest.mark.parametrize(
    "command",
    ["init", "dev", "serve", "run", "status", "tasks list", "tasks get", "tasks watch", "tasks events", "tasks send"]
    + [
        "tasks cancel",
        "tasks pause",
        "tasks resume",
        "tasks timeline",
        "tasks graph",
        "graph",
        "tasks retry",
        "tasks export",
        "tasks import",
        "tasks replay",
        "tasks fork",
        "tasks redrive",
        "tasks delete",
        "services list",
        "services get",
        "services pause",
        "services resume",
        "services limit",
        "services drain",
        "releases list",
        "releases use",
        "releases retire",
        "deployments finish",
        "deployments render",
        "queues list",
        "queues dead",
        "queues redrive",
        "queues purge",
        "queues peek",
        "queues pause",
        "queues resume",
        "sessions create",
        "sessions list",
        "sessions get",
        "sessions erase",
        "sessions erasures",
        "backup",
        "restore",
        "config list",
        "config set",
        "config use",
        "config unset",
        "config show",
        "completion",
        "doctor",
        "logs",
        "open",
        "tokens create",
        "tokens hash",
        "explain",
        "version",
    ],
)
def test_every_command_has_help(llamactl: Llamactl, command: str) -> None:
    ran = llamactl(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: llamactl {command}" in ran.out
    assert "--server" in ran.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["stauts"], "Did you mean 'status'?"),
        (["tasks", "lst"], "Did you mean 'list'?"),
        (["run"], "Missing argument 'SERVICE'"),
        (["status", "-o", "xml"], "is not one of"),
        (["tasks", "list", "--stat", "working"], "--state"),
        (["run", "shout", "-i", "{}", "-a", "text", "x"], "Give the input once: -i or -a."),
        (["run", "shout", "hello"], "Unexpected 'hello'"),
        (["run", "shout", "--stream", "-o", "json"], "use -o jsonl"),
        (["explain", "LD999"], "There is no error 'LD999'"),
        ([], "Usage: llamactl"),
    ],
)
def test_a_usage_error_exits_with_2_and_says_what_was_meant(llamactl: Llamactl, args: list[str], said: str) -> None:
    ran = llamactl(*args)
    assert ran.code == 2
    assert said in ran.err
    assert ran.out == ""
    if args:
        assert ran.err.startswith("Error LD110: ")
        assert "--help   says what it takes" in ran.err
        assert ran.err.endswith("More: llamactl explain LD110\n")


def test_nothing_listening_exits_with_3(llamactl: Llamactl, free_port: int) -> None:
    ran = llamactl("-s", f"http://127.0.0.1:{free_port}", "status", "-o", "json")
    assert ran.code == 3
    assert ran.out == ""
    assert ran.err.startswith("Error LD301: cannot reach the control plane")
    assert "More: llamactl explain LD301" in ran.err


def test_the_server_comes_from_the_option_nearest_to_the_command(
    server: str, llamactl: Llamactl, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    wrong = f"http://127.0.0.1:{free_port}"
    assert llamactl("-s", wrong, "status", "-s", server).code == 0
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", server)
    assert llamactl("status").code == 0
    assert llamactl("-s", wrong, "status").code == 3


def test_a_url_that_is_none_is_refused(llamactl: Llamactl) -> None:
    ran = llamactl("-s", "localhost:8000", "status")
    assert ran.code == 2
    assert "did you mean http://localhost:8000 ?" in ran.err
    assert "for example http://127.0.0.1:8000" in llamactl("-s", "ftp://localhost", "status").err


# --- filters ----------------------------------------------------------------------------------------------------------


def test_lists_take_filters_with_negated_terms_that_are_no_options(ctl: Llamactl) -> None:
    task_id = ctl("run", "shout", "-a", "text", "a", "--no-wait", "-o", "name").out.strip()
    assert ctl("tasks", "watch", task_id).code == 0
    assert ctl("tasks", "list", f"id:{task_id[:-1]}*", "state:completed", "-o", "name").out == f"{task_id}\n"
    assert ctl("tasks", "list", f"id:{task_id}", "-state:completed", "-o", "name").out == ""
    assert ctl("tasks", "list", "-o", "name", "-service:nobody", f"id:{task_id}", "hops:1").out == f"{task_id}\n"


def test_a_filter_that_cannot_be_read_exits_with_2_and_shows_the_place(ctl: Llamactl) -> None:
    ran = ctl("tasks", "list", "service:a", "stat:failed")
    assert (ran.code, ran.out) == (2, "")
    assert "at character 11: there is no field 'stat'" in ran.err
    assert "did you mean state?" in ran.err


# --- done again, and many at once -------------------------------------------------------------------------------------


def test_a_failed_task_is_retried_and_what_was_made_of_it_is_shown(ctl: Llamactl) -> None:
    task_id = ctl("run", "fail", "--no-wait", "-o", "name").out.strip()
    assert ctl("tasks", "watch", task_id).code == 1
    ran = ctl("tasks", "retry", task_id, "-o", "json")
    made = ran.json["items"][0]
    assert made["origin"] == f"retry:{task_id}"
    assert ctl("tasks", "watch", made["task_id"]).code == 1
    assert f"retry:{task_id}  {made['task_id']}  failed" in ctl("tasks", "get", task_id).out
    assert f"from retry:{task_id}" in ctl("tasks", "timeline", made["task_id"]).out
    assert ctl("tasks", "retry", task_id, "--from-start", "--wait").code == 1
    assert ctl("tasks", "retry", "nobody").code == 4


def test_a_task_is_replayed_with_another_input_and_forked(ctl: Llamactl) -> None:
    task_id = ctl("run", "shout", "-a", "text", "a", "--no-wait", "-o", "name").out.strip()
    assert ctl("tasks", "watch", task_id).code == 0
    assert ctl("tasks", "replay", task_id, "--input", '{"text": "b"}', "--wait").out == "B\n"
    assert ctl("tasks", "replay", task_id, "--from", f"{task_id}:1", "--wait").out == "A\n"
    assert ctl("tasks", "fork", task_id, "--at", "1", "--wait").out == "A\n"
    ran = ctl("tasks", "fork", task_id, "--at", "7")
    assert (ran.code, "LD215" in ran.err) == (5, True)
    assert ctl("tasks", "replay", task_id, "--data", "[").code == 2


def test_a_talk_is_read_where_it_is_kept(ctl: Llamactl) -> None:
    task_id = ctl("run", "remark", "-i", '"tides"', "--orchestrator", "talk", "-o", "name").out.strip()
    said = ctl("tasks", "ledger", task_id, "--first", "1", "-o", "jsonl").lines
    assert said == [{"position": 1, "item": {"speaker": "ben", "said": "tides 1"}}]
    assert "ann" in ctl("tasks", "ledger", task_id, "transcript").out
    refused = ctl("tasks", "ledger", task_id, "minutes")
    assert refused.code == 4
    assert "LD217" in refused.err


def test_tasks_are_moved_to_the_version_that_is_there(server: str, ctl: Llamactl) -> None:
    task_id = ask_clerk(server)
    assert ctl("tasks", "migrate", task_id, "--reason", "why not", "-o", "name").out.strip() == task_id
    matched = ctl("tasks", "migrate", "--filter", f'id:"{task_id}"', "--dry-run", "-o", "json").json
    assert matched["matched"] == 1
    ctl("tasks", "cancel", task_id)
    assert ctl("tasks", "migrate", task_id).code != 0


def test_many_tasks_are_counted_and_nothing_is_done_without_a_yes(ctl: Llamactl) -> None:
    ids = [ctl("run", "fail", "--no-wait", "-o", "name").out.strip() for _ in range(2)]
    for task_id in ids:
        ctl("tasks", "watch", task_id)
    chosen = f"id:{','.join(ids)}"
    ran = ctl("tasks", "retry", "--filter", chosen, "--dry-run")
    assert "2 tasks match" in ran.err
    assert ran.out.count("failed") == 2
    assert ctl("tasks", "retry", "--filter", chosen, "--dry-run", "-o", "json").json["matched"] == 2
    ran = ctl("tasks", "retry", "--filter", chosen)
    assert (ran.code, ran.out) == (2, "")
    assert "--yes is needed to retry 2 tasks" in ran.err
    ran = ctl("tasks", "retry", "--filter", chosen, "--yes", "--limit", "1", "-o", "name")
    assert (ran.code, len(ran.out.splitlines())) == (0, 1)
    ran = ctl("tasks", "delete", "--filter", chosen, "--yes")
    assert (ran.code, "2 done" in ran.err) == (0, True)
    assert ctl("tasks", "get", ids[0]).code == 4
    for wrong in ("retry", "retry x --filter id:*", "cancel x --dry-run", "replay x y --wait"):
        assert ctl("tasks", *wrong.split()).code == 2
    assert ctl("tasks", "retry", "--filter", "id:*", "--from-start", "--yes").code == 2


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_task_goes_into_a_file_and_comes_back_under_another_id(ctl: Llamactl, tmp_path: Path) -> None:
    task_id = ctl("run", "shout", "-a", "text", "a", "--no-wait", "-o", "name").out.strip()
    assert ctl("tasks", "watch", task_id).code == 0
    file = str(tmp_path / "task.jsonl")
    assert ctl("tasks", "export", task_id, "-f", file, "-o", "name").out == f"{file}\n"
    assert ctl("tasks", "export", task_id, "-f", file).code == 2
    ran = ctl("tasks", "import", file)
    assert (ran.code, "--as NEW_ID" in ran.err) == (5, True)
    assert ctl("tasks", "import", file, "--as", f"{task_id}-copy", "-o", "name").out == f"{task_id}-copy\n"
    assert "A" in ctl("tasks", "get", f"{task_id}-copy").out
    assert ctl("tasks", "export", "--filter", f"id:{task_id}*", "-f", file, "--replace").code == 0
    ctl("tasks", "delete", task_id, f"{task_id}-copy")
    assert ctl("tasks", "import", file, "-o", "name").out.split() == [f"{task_id}-copy", task_id]
    (tmp_path / "rubbish").write_text("{}\n")
    ran = ctl("tasks", "import", str(tmp_path / "rubbish"))
    assert (ran.code, "line 1 of the file" in ran.err) == (2, True)
    assert ctl("tasks", "export", "-f", file).code == 2
    chosen = ("--filter", f"id:{task_id}*")
    ran = ctl("tasks", "export", *chosen, "--dry-run")
    assert (ran.code, "2 tasks match" in ran.err, task_id in ran.out) == (0, True, True)
    ran = ctl("tasks", "export", *chosen, "-f", file, "--replace", "--limit", "1")
    assert (ran.code, "2 tasks match; 1 of them, the newest" in ran.err) == (0, True)
    assert (tmp_path / "task.jsonl").read_text().count('"end"') == 1
    for wrong in ((*chosen,), (task_id, "-f", file, "--dry-run"), (task_id, "-f", file, "--limit", "1")):
        assert ctl("tasks", "export", *wrong).code == 2


# --- dead letters -----------------------------------------------------------------------------------------------------


def test_what_was_given_up_is_shown_sent_again_and_removed(ctl: Llamactl) -> None:
    task_id = ctl("run", "fail", "--no-wait", "-o", "name").out.strip()
    assert ctl("tasks", "watch", task_id).code == 1
    step = f"{task_id}:1"
    assert step in ctl("queues", "dead", "fail", "-o", "name").out.splitlines()
    assert "it is broken" in ctl("queues", "dead").out
    detail = ctl("queues", "dead", "--step", step, "-o", "json").json
    assert (detail["letter"]["code"], detail["task_state"]) == ("LD510", "failed")
    assert "of fail" in ctl("status").out
    made = ctl("queues", "redrive", step, "-o", "json").json["items"][0]["task_id"]
    assert ctl("tasks", "get", made, "-o", "json").json["origin"] == f"redrive:{task_id}"
    assert ctl("queues", "redrive", step, "-o", "json").json["items"][0]["task_id"] == made
    assert ctl("queues", "redrive", "nothing").code == 4
    assert ctl("queues", "purge", step).code == 0
    assert ctl("queues", "dead", "--step", step).code == 4


def test_tasks_with_dead_letters_are_sent_again_by_a_filter(ctl: Llamactl) -> None:
    ids = [ctl("run", "fail", "--no-wait", "-o", "name").out.strip() for _ in range(2)]
    for task_id in ids:
        ctl("tasks", "watch", task_id)
    chosen = ("--filter", f"id:{','.join(ids)} dead:yes")
    assert "2 tasks match" in ctl("tasks", "redrive", *chosen, "--dry-run").err
    assert "--yes is needed to redrive 2 tasks" in ctl("tasks", "redrive", *chosen).err
    made = ctl("tasks", "redrive", ids[0], "-o", "json").json["items"][0]
    assert made["origin"] == f"redrive:{ids[0]}"
    ran = ctl("tasks", "redrive", *chosen, "--yes", "-o", "json")
    assert (ran.code, [item["task_id"] for item in ran.json["items"]]) == (0, [ids[1]])
    assert ctl("tasks", "redrive", ids[0]).code == 4


def test_many_dead_letters_are_counted_first(ctl: Llamactl) -> None:
    task_id = ctl("run", "fail", "--no-wait", "-o", "name").out.strip()
    assert ctl("tasks", "watch", task_id).code == 1
    assert ctl("queues", "redrive", "--service", "nobody", "--dry-run").out == "0 dead letters\n"
    assert ctl("queues", "redrive", "--service", "fail").code == 2
    ran = ctl("queues", "redrive", "--service", "fail", "--error", "LD510", "--yes", "-o", "name")
    assert (ran.code, f"{task_id}:1" in ran.out) == (0, True)
    assert ctl("queues", "purge", "--older-than", "tomorrow").code == 2
    assert ctl("queues", "purge").code == 2
    ran = ctl("queues", "purge", "--all", "--yes")
    assert (ran.code, "match" in ran.err) == (0, True)


# --- explain, version, init -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["LD301", "ld301", "301"])
def test_explain_says_what_an_error_means(llamactl: Llamactl, code: str) -> None:
    ran = llamactl("explain", code)
    assert ran.out.startswith("LD301: cannot reach the control plane\n\nNothing answers")
    assert "exit code 3" in ran.out


def test_explain_lists_all_errors(llamactl: Llamactl) -> None:
    assert {"LD101", "LD501"} <= {item["code"] for item in llamactl("explain", "-o", "json").json["items"]}


def test_version_is_data(llamactl: Llamactl) -> None:
    assert llamactl("version", "-o", "json").json["protocol"] == 1
    assert llamactl("--version").out.startswith("llamactl, version ")


def test_init_writes_a_deployment_that_loads_and_nothing_twice(llamactl: Llamactl, tmp_path: Path) -> None:
    folder = tmp_path / "my demo!"
    ran = llamactl("init", str(folder), "-o", "json")
    assert ran.code == 0
    assert ran.json["name"] == "my-demo"
    assert sorted(path.name for path in folder.iterdir()) == sorted(ran.json["files"])
    file = load_deployment_file(folder)
    assert [service.name for service in file.services] == ["shout", "researcher"]
    assert llamactl("serve", str(folder), "--check").code == 0

    (folder / "README.md").unlink()
    (folder / "services.py").write_text("mine")
    again = llamactl("init", str(folder))
    assert again.code == 5
    assert "Error LD107" in again.err
    assert (folder / "services.py").read_text() == "mine"
    assert not (folder / "README.md").exists()


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_prints_the_answer_and_nothing_else_on_standard_output(ctl: Llamactl) -> None:
    ran = ctl("run", "shout", "-i", '{"text": "hello"}')
    assert (ran.code, ran.out) == (0, "HELLO\n")
    lines = ran.err.splitlines()
    assert lines[0].startswith("task ")
    assert [line.split("  ", 1)[1].split(" after")[0] for line in lines[1:]] == [
        "shout  sent",
        "shout  answered",
        "completed",
    ]


def test_run_quietly_says_nothing_else(ctl: Llamactl) -> None:
    assert ctl("run", "shout", "-a", "text", "hello", "-q").err == ""


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        (["-a", "text", "3", "-a", "times", "2"], "33\n"),
        (["-a", "text", "true"], "TRUE\n"),
        (["-i", '"hello"'], "HELLO\n"),
    ],
)
def test_arguments_are_read_by_the_services_schema(ctl: Llamactl, args: list[str], answer: str) -> None:
    assert ctl("run", "shout", *args).out == answer


def test_run_reads_standard_input(ctl: Llamactl, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b'{"text": "from a pipe"}')
    assert ctl("run", "shout", "-").out == "FROM A PIPE\n"
    stdin(monkeypatch, b"\xff")
    ran = ctl("run", "shout", "-")
    assert ran.code == 2
    assert "not UTF-8" in ran.err


def test_wrong_json_is_shown_with_its_place(ctl: Llamactl) -> None:
    ran = ctl("run", "shout", "-i", '{"text": hello}')
    assert ran.code == 2
    assert '  line 1, column 10: Expecting value\n  {"text": hello}\n           ^' in ran.err


@pytest.mark.parametrize("form", ["json", "jsonl", "yaml"])
def test_run_prints_one_document_for_programs(ctl: Llamactl, form: str) -> None:
    ran = ctl("run", "count", "-a", "to", "1", "-o", form)
    document = yaml.safe_load(ran.out)
    assert document["state"] == "completed"
    assert document["result"]["value"] == {"counted": 1}
    assert document["task_id"] in ran.err


def test_run_prints_the_id_for_shells(ctl: Llamactl) -> None:
    task_id = ctl("run", "shout", "-a", "text", "x", "-o", "name").out.strip()
    assert ctl("tasks", "get", task_id, "-o", "name").out.strip() == task_id


def test_run_streams_events_before_the_answer(ctl: Llamactl) -> None:
    lines = ctl("run", "count", "-a", "to", "2", "--stream", "-o", "jsonl").lines
    assert lines[:2] == [{"index": 0, "data": {"number": 0}}, {"index": 1, "data": {"number": 1}}]
    assert lines[2]["result"]["value"] == {"counted": 2}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_failed_task_exits_with_1(ctl: Llamactl, form: str) -> None:
    ran = ctl("run", "fail", "-o", form)
    assert ran.code == 1
    assert "Error LD501" in ran.err
    assert "it is broken" in ran.err
    assert ran.out == "" if form == "text" else ran.json["result"]["error"]["message"] == "it is broken"


def test_input_that_does_not_fit_is_told_with_what_to_do_once(ctl: Llamactl) -> None:
    ran = ctl("run", "shout", "-i", '{"txt": "a"}')
    assert ran.code == 1
    assert "Fix:  give a JSON object with: text (string), times (integer, optional)\n        llamactl tasks" in ran.err
    assert ran.err.count("Fix:") == 1


def test_a_service_that_nobody_serves_exits_with_4(ctl: Llamactl) -> None:
    ran = ctl("run", "shuot", "-i", "{}")
    assert (ran.code, ran.out) == (4, "")
    assert "Error LD202" in ran.err


@pytest.mark.parametrize("form", ["text", "name", "json"])
def test_a_timeout_exits_with_7_and_prints_the_id(ctl: Llamactl, form: str) -> None:
    ran = ctl("run", "slow", "--timeout", "0.05", "-o", form)
    assert ran.code == 7
    task_id = ran.json["task_id"] if form == "json" else ran.out.strip()
    assert f"llamactl tasks watch {task_id}" in ran.err
    assert ctl("tasks", "cancel", task_id, "-o", "json").json["items"][0]["state"] == "canceled"


def test_no_wait_prints_the_id_and_leaves(ctl: Llamactl) -> None:
    ran = ctl("run", "slow", "--no-wait")
    assert (ran.code, ran.err) == (0, "")
    view = ctl("run", "slow", "--no-wait", "-o", "json").json
    assert view["service"] == "slow"
    assert ctl("tasks", "cancel", ran.out.strip(), view["task_id"]).code == 0


def test_a_session_and_an_idempotency_key_are_passed_on(ctl: Llamactl) -> None:
    args = ["run", "shout", "-a", "text", "x", "--session", "one", "--idempotency-key", "k", "-o", "name"]
    assert ctl(*args).out == ctl(*args).out
    assert ctl("sessions", "get", "one", "-o", "json").json["task_count"] == 1


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_tasks_are_listed_by_page_and_filter(ctl: Llamactl) -> None:
    ids = [ctl("run", "shout", "-a", "text", "x", "--session", "listed", "-o", "name").out.strip() for _ in range(3)]
    page = ctl("tasks", "list", "--session", "listed", "--limit", "2", "-o", "json").json
    assert [item["task_id"] for item in page["items"]] == ids[:0:-1]
    rest = ctl("tasks", "list", "--session", "listed", "--cursor", page["next"], "-o", "json").json
    assert [item["task_id"] for item in rest["items"]] == ids[:1]
    assert rest["next"] is None
    assert page["items"][0]["created_at"].endswith("Z")
    text = ctl("tasks", "list", "--session", "listed", "--limit", "2")
    assert text.out.split()[:4] == ["TASK", "SERVICE", "STATE", "HOPS"]
    assert f"--cursor {page['next']}" in text.err
    assert ctl("tasks", "list", "--session", "listed", "-o", "name").out.split() == ids[::-1]
    assert len(ctl("tasks", "list", "--session", "listed", "-o", "jsonl").lines) == 3
    empty = ctl("tasks", "list", "--session", "listed", "--state", "failed", "--state", "working")
    assert (empty.out, empty.err) == ("", "No such tasks.\n")


def test_get_shows_steps_and_result(ctl: Llamactl) -> None:
    task_id = ctl("run", "count", "-a", "to", "0", "-o", "name").out.strip()
    text = ctl("tasks", "get", task_id).out
    assert "completed" in text
    assert "count  answered" in text
    assert '"counted": 0' in text
    assert ctl("tasks", "get", task_id, "-o", "json").json["result"]["value"] == {"counted": 0}


def test_get_shows_a_failure_and_its_traceback_on_request(ctl: Llamactl) -> None:
    task_id = ctl("run", "fail", "-o", "name").out.strip()
    assert "NonRetryableError: it is broken" in ctl("tasks", "get", task_id).out
    assert "raise NonRetryableError" in ctl("tasks", "get", task_id, "-o", "wide").out


@pytest.mark.parametrize("command", ["get", "watch", "events", "timeline", "cancel"])
def test_a_task_that_is_not_there_exits_with_4(ctl: Llamactl, command: str) -> None:
    ran = ctl("tasks", command, "nothing")
    assert (ran.code, ran.out) == (4, "")
    assert "Error LD203" in ran.err


def test_watch_shows_the_history_and_exits_like_the_task(ctl: Llamactl) -> None:
    task_id = ctl("run", "shout", "-a", "text", "hello", "-o", "name").out.strip()
    text = ctl("tasks", "watch", task_id)
    assert text.code == 0
    assert text.out.splitlines()[-2:] == [text.out.splitlines()[-2], "HELLO"]
    kinds = [entry["kind"] for entry in ctl("tasks", "watch", task_id, "-o", "jsonl").lines]
    assert (kinds[0], kinds[-1]) == ("submitted", "answered")
    failed = ctl("run", "fail", "-o", "name").out.strip()
    assert ctl("tasks", "watch", failed).code == 1


@pytest.mark.parametrize(("command", "count"), [("watch", 2), ("events", 3)])
def test_a_followed_task_is_one_document_in_json_and_yaml(ctl: Llamactl, command: str, count: int) -> None:
    task_id = ctl("run", "count", "-a", "to", "3", "-o", "name").out.strip()
    document = ctl("tasks", command, task_id, "-o", "json").json
    assert (len(document["items"]), document["next"]) == (count, None)
    assert yaml.safe_load(ctl("tasks", command, task_id, "-o", "yaml").out) == document
    assert ctl("tasks", "events", task_id, "-o", "name").out.split() == ["0", "1", "2"]


def test_watch_follows_a_task_until_it_ends(server: str, ctl: Llamactl) -> None:
    task_id = ask_clerk(server)
    answered = threading.Thread(target=_answer, args=(server, task_id))
    answered.start()
    ran = ctl("tasks", "watch", task_id)
    answered.join()
    assert ran.code == 0
    assert "clerk  waits for input" in ran.out


def _answer(server: str, task_id: str) -> None:
    with SyncClient(server) as client:
        client.send_input(task_id, "yes")


def test_events_can_be_read_from_any_number(ctl: Llamactl) -> None:
    task_id = ctl("run", "count", "-a", "to", "3", "-o", "name").out.strip()
    assert [line["index"] for line in ctl("tasks", "events", task_id, "--first", "1", "-o", "jsonl").lines] == [1, 2]
    assert ctl("tasks", "events", task_id).out.splitlines()[0] == '{"number":0}'


@pytest.mark.parametrize(
    ("args", "answer"), [(["yes"], "yes"), (["42"], 42), (["42", "--text"], "42"), (["-"], {"ok": True})]
)
def test_send_answers_a_task_that_asks(
    server: str, ctl: Llamactl, monkeypatch: pytest.MonkeyPatch, args: list[str], answer: Any
) -> None:
    task_id = ask_clerk(server)
    view = ctl("tasks", "get", task_id, "-o", "json").json
    assert view["state"] == "input_required"
    stdin(monkeypatch, b'{"ok": true}')
    ran = ctl("tasks", "send", task_id, *args)
    assert (ran.code, ran.out) == (0, "")
    assert ctl("tasks", "watch", task_id).code == 0
    result = ctl("tasks", "get", task_id, "-o", "json").json["result"]
    assert (result["value"] if result["kind"] == "json" else result["result"]) == answer
    again = ctl("tasks", "send", task_id, *args)
    assert again.code == 5


def test_send_prints_the_task_for_programs(server: str, ctl: Llamactl) -> None:
    task_id = ask_clerk(server)
    assert ctl("tasks", "send", task_id, "yes", "-o", "json").json["task_id"] == task_id
    task_id = ask_clerk(server)
    assert ctl("tasks", "send", task_id, "yes", "-o", "name").out.strip() == task_id


def test_cancel_goes_on_with_the_others_when_one_cannot_be_canceled(server: str, ctl: Llamactl) -> None:
    ended = ctl("run", "shout", "-a", "text", "hello", "-o", "name").out.strip()
    open_task = ask_clerk(server)
    ran = ctl("tasks", "cancel", ended, "nothing", open_task, "-o", "name")
    assert (ran.code, ran.out.split()) == (5, [open_task])
    assert ended in ran.err
    assert "there is no task 'nothing'" in ran.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_told_without_a_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "llama_deploy.cli", "version"]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[:2] == ["Error LD111: the output cannot be written", "  No space left on device"]


def test_cancel_stops_a_task_with_a_reason(ctl: Llamactl) -> None:
    STARTED.clear()
    task_id = ctl("run", "slow", "--no-wait").out.strip()
    assert STARTED.wait(PROCESS_S)
    ran = ctl("tasks", "cancel", task_id, "--reason", "not needed")
    assert (ran.code, ran.err) == (0, "")
    assert "canceled" in ran.out
    assert ctl("tasks", "watch", task_id).code == 1
    assert "not needed" in ctl("tasks", "get", task_id).out


# --- services, sessions, status ---------------------------------------------------------------------------------------


def test_services_are_listed_and_shown(ctl: Llamactl) -> None:
    listed = ctl("services", "list", "-o", "json").json["items"]
    assert [item["name"] for item in listed] == ["clerk", "count", "fail", "flaky", "remark", "shout", "size", "slow"]
    assert "Says it louder." in ctl("services", "list", "-o", "wide").out
    shown = ctl("services", "get", "shout")
    assert '"text":{' in shown.out.replace(" ", "")
    assert ctl("services", "get", "shout", "-o", "json").json["instances"][0]["capacity"] == 8
    assert ctl("services", "get", "nothing").code == 4


def test_sessions_are_listed_and_shown(ctl: Llamactl) -> None:
    ctl("run", "shout", "-a", "text", "x", "--session", "shown")
    assert "shown" in ctl("sessions", "list", "-o", "name").out.split()
    assert ctl("sessions", "get", "shown").out.startswith("session id")
    assert "state" in ctl("sessions", "get", "shown", "-o", "json").json
    assert ctl("sessions", "get", "nothing").code == 4


def test_status_says_where_the_data_is_and_who_serves(server: str, ctl: Llamactl) -> None:
    text = ctl("status").out
    assert server in text
    assert "memory" in text
    assert "shout (1)" in text
    assert ctl("status", "-o", "json").json["ready"] is True


def test_a_store_that_cannot_be_written_is_not_called_ready() -> None:
    document = {"url": "http://here", "ready": True, "store": {"location": "demo.db", "healthy": False}}
    assert "not ready: the store cannot be written" in status_text(document, [])


# --- queues -----------------------------------------------------------------------------------------------------------


def test_queues_list_shows_what_waits_for_each_service(ctl: Llamactl) -> None:
    ran = ctl("queues", "list", "-o", "json")
    assert ran.code == 0
    shown = {queue["name"]: queue for queue in ran.json["items"]}
    assert (shown["shout"]["state"], shown["shout"]["waiting"]) == ("up", 0)
    assert ctl("queues", "list").out.split()[:3] == ["QUEUE", "STATE", "WAITING"]


def test_a_service_is_paused_shown_peeked_at_and_goes_on(ctl: Llamactl, server: str) -> None:
    assert ctl("services", "pause", "shout", "--reason", "maintenance").code == 0
    try:
        with SyncClient(server) as client:
            task_id = client.submit("shout", text="a", options={"priority": 7, "key": "k"})
        listed = ctl("queues", "list")
        assert "maintenance" in listed.err
        assert "paused (1)" in listed.out
        waiting = ctl("queues", "peek", "shout", "-o", "json").json["items"]
        assert [(step["task_id"], step["priority"], step["key"]) for step in waiting] == [(task_id, 7, "k")]
        assert waiting[0]["reason"].startswith("shout is paused by ")
        assert waiting[0]["reason"].endswith(": maintenance")
        assert "maintenance" in ctl("tasks", "get", task_id).out
        assert "maintenance" in ctl("status").err
    finally:
        assert ctl("queues", "resume", "shout").out.startswith("shout goes on")
    with SyncClient(server) as client:
        assert client.result(task_id) == "A"
    assert ctl("queues", "peek", "shout").out == ""


def test_limits_are_set_one_by_one_shown_and_taken_away(ctl: Llamactl) -> None:
    ran = ctl("services", "limit", "count", "--running", "5", "--rate", "100/60", "--burst", "10")
    assert (ran.code, ran.out) == (0, "count: running 5, rate 100 in 60 s, 10 at once\n")
    assert ctl("services", "limit", "count", "--per-key", "2", "--rate", "none").out == "count: running 5, per-key 2\n"
    shown = ctl("services", "get", "count", "-o", "json").json
    assert (shown["limits"]["running_max"], "@" in shown["limits_set"]["by"]) == (5, True)
    assert ctl("services", "limit", "count", "--reset").out == "count: no limits\n"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["limit", "count"], 2, "Give limits to set"),
        (["limit", "count", "--running", "many"], 2, "--running takes a whole number"),
        (["limit", "count", "--rate", "a/b"], 2, "100/60"),
        (["limit", "count", "--running", "0"], 2, "greater than or equal to 1"),
        (["limit", "count", "--burst", "2"], 2, "Give limits to set"),
        (["limit", "count", "--running", "1", "--reset"], 2, "--reset takes no other limit"),
        (["limit", "nobody", "--running", "1"], 4, "there is no service 'nobody'"),
        (["pause", "nobody"], 4, "there is no service 'nobody'"),
        (["drain", "count", "nobody"], 4, "count has no instance 'nobody'"),
    ],
)
def test_what_cannot_be_done_to_a_service_is_refused(ctl: Llamactl, args: list[str], code: int, said: str) -> None:
    ran = ctl("services", *args)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err


def test_an_instance_in_the_control_planes_process_is_not_drained(ctl: Llamactl) -> None:
    instance = ctl("services", "get", "shout", "-o", "json").json["instances"][0]["instance_id"]
    ran = ctl("services", "drain", "shout", instance)
    assert (ran.code, "own process" in ran.err) == (2, True)
