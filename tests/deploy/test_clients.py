"""The program that `tests/control_plane/http/published` runs with the published package, run with this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.support.published import ASYNCHRONOUS_02, BLOCKING_02, PROGRAMS, serving


@pytest.fixture
def port() -> Iterator[str]:
    with serving() as port:
        yield port


def test_a_program_of_0_2_runs_unchanged(port: str) -> None:
    command = [sys.executable, str(PROGRAMS / "client_02.py"), port]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    blocking = seen["sync"]
    # deliberately different: a failure does not look like a result
    assert blocking == BLOCKING_02 | {"failed": ["TaskFailed", True]}
    assert seen["async"] == ASYNCHRONOUS_02
