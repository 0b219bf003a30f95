"""The models of the API: what the smallest document has to hold, and that documents of other versions are read."""

from __future__ import annotations

from llama_deploy.types import (
    HistoryEntry,
    HistoryPage,
    ServicePage,
    SessionPage,
    TaskPage,
    TaskResultView,
    TaskState,
    TaskView,
)


def test_a_history_entry_needs_its_number_time_kind_and_state() -> None:
    entry = HistoryEntry.model_validate({"seq": 1, "at": 5.0, "kind": "of tomorrow", "state": "working", "new": 1})
    assert entry.state is TaskState.WORKING
    assert (entry.messages, entry.outcome, entry.error, entry.prompt) == ([], None, None, None)


def test_a_history_entry_carries_its_error_as_a_value() -> None:
    entry = HistoryEntry.model_validate(
        {"seq": 2, "at": 5.0, "kind": "retrying", "state": "working", "error": {"message": "boom"}}
    )
    assert entry.error is not None
    assert entry.error.message == "boom"
    assert HistoryPage(items=[entry]).next is None


def test_pages_read_what_they_write() -> None:
    task = {"task_id": "t1", "session_id": "s1", "state": "input_required", "created_at": 1.0, "updated_at": 2.0}
    tasks = TaskPage.model_validate({"items": [task], "next": "c"})
    assert TaskPage.model_validate_json(tasks.model_dump_json()) == tasks
    sessions = SessionPage.model_validate({"items": [{"session_id": "s1", "created_at": 1.0}]})
    assert SessionPage.model_validate_json(sessions.model_dump_json()) == sessions
    service = {"definition": {"service_name": "w", "description": ""}, "instances": [{"instance_id": "i1"}]}
    services = ServicePage.model_validate({"items": [service]})
    assert ServicePage.model_validate_json(services.model_dump_json()) == services


def test_a_task_that_waits_says_why_and_shows_what_is_asked() -> None:
    view = TaskView(
        task_id="t1",
        session_id="s1",
        state=TaskState.INPUT_REQUIRED,
        created_at=1.0,
        updated_at=1.0,
        waiting_for="a person's answer",
        prompt={"prompt": "Go on?"},
    )
    assert (view.ended_at, view.hops, view.result) == (None, 0, None)
    assert TaskResultView(task_id="t1", state=view.state).result is None
