"""The file that says that a server is ready: when it is there, what it holds, and whose it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llama_deploy.apiserver.ready_file import ReadyFile
from llama_deploy.errors import SettingError


@pytest.fixture
def said() -> list[str]:
    return []


def test_it_is_there_from_the_first_word_to_the_end(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "ready.json"
    with ReadyFile(path, said.append) as ready_file:
        assert list(tmp_path.iterdir()) == []
        ready_file.write(url="http://127.0.0.1:1", store="here")
        ready_file.write(url="http://127.0.0.1:2", store="here")
        assert json.loads(path.read_text()) == {"url": "http://127.0.0.1:2", "pid": os.getpid(), "store": "here"}
        assert list(tmp_path.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == []
    ready_file.write(url="http://127.0.0.1:3")
    assert list(tmp_path.iterdir()) == []
    assert said == []


def test_one_that_was_left_behind_is_removed_at_the_beginning(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "ready.json"
    path.write_text("old")
    ReadyFile(path, said.append)
    assert not path.exists()


@pytest.mark.parametrize("text", ['{"pid": 1}', "[]", "no JSON"])
def test_somebody_elses_stays(tmp_path: Path, said: list[str], text: str) -> None:
    path = tmp_path / "ready.json"
    with ReadyFile(path, said.append) as ready_file:
        ready_file.write(url="http://127.0.0.1:1")
        path.write_text(text)
    assert path.read_text() == text


def test_a_place_that_cannot_be_is_refused_at_the_beginning(tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(SettingError, match=r"ready\.json cannot be written"):
        ReadyFile(tmp_path / "nowhere" / "ready.json", said.append)
    with pytest.raises(SettingError):
        ReadyFile(tmp_path, said.append)


def test_what_cannot_be_written_later_is_told_and_stops_nothing(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "ready.json"
    with ReadyFile(path, said.append) as ready_file:
        path.mkdir()
        ready_file.write(url="http://127.0.0.1:1")
    assert len(said) == 1
    assert said[0].startswith(f"cannot write {path}: ")
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_path_it_does_nothing(said: list[str]) -> None:
    with ReadyFile(None, said.append) as ready_file:
        ready_file.write(url="http://127.0.0.1:1")
    assert said == []
