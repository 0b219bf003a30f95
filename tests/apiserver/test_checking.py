"""Whether a deployment would start, as another process sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_deploy.apiserver import checking
from llama_deploy.apiserver.checking import why_not

FILE = "name: demo\nservices: {run: {import-path: 'code:run'}}\norchestrator: 'policy:Policy'\n"


async def test_code_that_never_loads_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy.py").write_text("import signal\nsignal.pause()\n")
    (tmp_path / "deployment.yml").write_text(FILE)
    monkeypatch.setattr(checking, "CHECK_TIMEOUT_S", 0.5)
    assert await why_not(tmp_path / "deployment.yml") == f"{tmp_path}/deployment.yml takes more than 0.5 s to load"


async def test_a_process_that_ends_without_a_word_is_no_yes(tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text("import os\nos._exit(7)\n")
    (tmp_path / "deployment.yml").write_text(FILE)
    assert await why_not(tmp_path / "deployment.yml") == f"{tmp_path}/deployment.yml cannot be loaded: exit code 7"
