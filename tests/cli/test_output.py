"""How values, times and tables look, in each form of output."""

from __future__ import annotations

import json

import pytest
import yaml

from llama_deploy.cli.output import Column, Printer, document_of, duration, fields, iso_time
from llama_deploy.cli.settings import Settings
from llama_deploy.types import InstanceView, ServiceDefinition, ServiceView

ITEMS = [{"id": "a", "count": 1, "note": None}, {"id": "bcd", "count": 20, "note": "two\nlines"}]
COLUMNS = [Column("id", "ID"), Column("count", "COUNT")]


def printed(capsys: pytest.CaptureFixture[str], form: str) -> str:
    printer = Printer(Settings(output=form))
    printer.table(ITEMS, COLUMNS, wide=[Column("note", "NOTE")], name="id", cursor="next one")
    return capsys.readouterr().out


def test_a_table_has_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "text") == "ID   COUNT\na    1\nbcd  20\n"
    assert printed(capsys, "wide") == "ID   COUNT  NOTE\na    1      -\nbcd  20     two lines\n"


def test_a_list_is_an_object_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"items": ITEMS, "next": "next one"}
    assert json.loads(printed(capsys, "json")) == expected
    assert yaml.safe_load(printed(capsys, "yaml")) == expected
    assert [json.loads(line) for line in printed(capsys, "jsonl").splitlines()] == ITEMS
    assert printed(capsys, "name") == "a\nbcd\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0124, "12 ms"),
        (0.9999, "1.0 s"),
        (3.44, "3.4 s"),
        (59.0, "59.0 s"),
        (59.96, "1 min 0 s"),
        (125.0, "2 min 5 s"),
        (3780.0, "1 h 3 min"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_are_iso_in_utc() -> None:
    assert iso_time(1_700_000_000.25) == "2023-11-14T22:13:20.250Z"
    assert iso_time(None) == "-"


def test_times_become_text_in_views_and_stay_in_user_data() -> None:
    view = ServiceView(
        definition=ServiceDefinition(service_name="a", description="", input_schema={"created_at": 1.5}),
        instances=[InstanceView(instance_id="i", connected_at=0.0)],
    )
    document = document_of(view)
    assert document["instances"][0]["connected_at"] == "1970-01-01T00:00:00.000Z"
    assert document["definition"]["input_schema"] == {"created_at": 1.5}


def test_fields_leave_out_what_is_empty_and_keep_lines() -> None:
    assert fields({"task_id": "t", "note": "", "text": "a\nb", "value": {"x": 1}, "none": None}) == (
        'task id  t\ntext     a\n         b\nvalue    {"x":1}'
    )
