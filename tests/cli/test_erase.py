"""`llamactl sessions erase`: it says what would go, asks, and does it only when told to."""

from __future__ import annotations

from tests.cli.conftest import Llamactl


def _task(ctl: Llamactl, session: str) -> str:
    task_id = ctl("run", "shout", "-a", "text", "hello", "--session", session, "--no-wait").out.strip()
    assert ctl("tasks", "watch", task_id).code == 0
    return task_id


def test_a_session_is_erased(ctl: Llamactl) -> None:
    task_id = _task(ctl, "gone")
    looked = ctl("sessions", "erase", "gone", "--dry-run", "-o", "json")
    assert (looked.code, looked.json["tasks"], looked.json["erased"]) == (0, 1, False)
    assert ctl("tasks", "get", task_id).code == 0
    erased = ctl("sessions", "erase", "gone", "--yes", "--by", "Ada", "-o", "json")
    assert (erased.code, erased.json["erased"], erased.json["scrubbed"]) == (0, True, True)
    assert ctl("tasks", "get", task_id).code == 4
    assert ctl("sessions", "erase", "gone", "--yes").code == 4
    noted = ctl("sessions", "erasures", "-o", "json").json["items"][0]
    assert (noted["session_id"], noted["by"]) == ("gone", "Ada")
    assert "Ada" in ctl("sessions", "erasures").out


def test_where_nobody_can_be_asked_it_takes_a_yes(ctl: Llamactl) -> None:
    task_id = _task(ctl, "kept")
    refused = ctl("sessions", "erase", "kept")
    assert refused.code == 2
    assert "1 task (0 unfinished) and 1 key of session kept" in refused.err
    assert "--yes" in refused.err
    assert ctl("tasks", "get", task_id).code == 0
