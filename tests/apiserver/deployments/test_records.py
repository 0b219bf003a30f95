"""What an API server remembers, over the end of whoever wrote it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_deploy.apiserver.deployments import records as records_module
from llama_deploy.apiserver.deployments.records import EventRow, Records, VersionState, Wanted
from llama_deploy.apiserver.deployments.server import DeploymentServer
from llama_deploy.apiserver.supervisor import ChildState, ChildStatus
from llama_deploy.errors import StoreUnavailableError, StoreVersionError


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path / "deployments.db")
    yield made
    made.close()


def test_what_is_wanted_is_there_for_whoever_opens_the_file_next(records: Records, tmp_path: Path) -> None:
    assert [records.put_version("a", "digest"), records.put_version("a", "other")] == [1, 2]
    records.judge("a", 1, VersionState.PROVED)
    records.judge("a", 1, VersionState.FAILED, "a later start")
    records.judge("a", 2, VersionState.FAILED, "no luck")
    records.want("a", version=1, wanted=Wanted.STOPPED)
    records.scale("a", "shout", 3)
    records.scale("a", "other", 2)
    records.scale("a", "other", None)
    records.close()
    opened = Records(tmp_path / "deployments.db")
    row = opened.deployment("a")
    assert row is not None
    assert (row.wanted, row.version) == (Wanted.STOPPED, 1)
    assert [(one.number, one.state, one.reason) for one in opened.versions("a")] == [
        (2, VersionState.FAILED, "no luck"),
        (1, VersionState.PROVED, ""),
    ]
    assert opened.replicas("a") == {"shout": 3}
    assert (tmp_path / "deployments.db").stat().st_mode & 0o077 == 0
    opened.forget("a")
    assert (opened.deployments(), opened.versions("a"), opened.replicas("a")) == ([], [], {})
    opened.close()


def test_events_are_in_order_and_the_oldest_go(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "EVENTS_KEPT", 3)
    for number in range(5):
        records.tell("a", "kind", str(number))
    records.tell("b", "kind", "of another one")
    assert [event.message for event in records.events("a")] == ["2", "3", "4"]
    assert [event.message for event in records.events("a", after=records.events("a")[1].number)] == ["4"]


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("PRAGMA application_id = 7")
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StoreVersionError):
        Records(tmp_path / "other.db")


def test_a_file_that_fails_is_told_as_such(records: Records) -> None:
    records.close()
    with pytest.raises(StoreUnavailableError):
        records.deployments()
    with pytest.raises(StoreUnavailableError):
        records.put_version("a", "digest")


async def test_what_happens_to_processes_goes_on_where_it_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with DeploymentServer(tmp_path) as server:
        running = server._place("full")

        def full(*_: object, **__: object) -> EventRow:
            raise StoreUnavailableError("no space is left")

        monkeypatch.setattr(server.records, "tell", full)
        running._changed.clear()
        running._child_changed(ChildStatus(name="a", service="a", state=ChildState.RUNNING, ready=True))
        assert running._changed.is_set(), "whoever waits for it to be ready looks again"
    assert "no space is left" in caplog.text
