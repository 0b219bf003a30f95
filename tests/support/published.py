"""The programs of users of the published package (`tests/control_plane/http/published`), and what they have to see.

They run with the published clients, installed as their users have them, and with this package under the old names; what
is deliberately different stands with the tests of each.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).resolve().parents[1] / "control_plane" / "http" / "published"
SERVICES = ["echo", "fail", "go", "person", "tell"]
EVENTS = [{"number": 0}, {"number": 1}, {"number": 2}, {"result": "told"}]

BLOCKING_02: dict[str, Any] = {
    "run": "echo hello",
    "stream": EVENTS,
    "result": [True, "told", {}],
    "failed": "no ink",
    "unserved": True,
    "timed_out": True,
    "tasks": ["echo", "tell", "fail", "echo"],
    "current": True,
    "listed": True,
    "same": True,
    "got": True,
    "services": sorted([*SERVICES, "elsewhere"]),
    "service": "d",
    "services_left": SERVICES,
    "deleted": "ValueError",
}
"""What `client_02.py` sees with the blocking client."""
ASYNCHRONOUS_02 = {"run": "echo hello", "stream": EVENTS, "result": "told", "sessions": True}
CORE_08: dict[str, Any] = {
    "run": "echo hello",
    "stream": EVENTS,
    "result": [True, "told", {}],
    "failed": "no ink",
    "early": None,
    "answered": "hello Ada",
    "unserved": True,
    "timed_out": True,
    "tasks": ["echo", "tell", "go", "fail", "person", "echo"],
    "listed": True,
    "got": True,
    "got_or_created": True,
    "created": True,
    "services": sorted([*SERVICES, "elsewhere"]),
    "services_left": SERVICES,
    "deleted": True,
}
"""What `client_08.py` sees of a control plane."""
SERVER_08: dict[str, Any] = {
    "status": ["Healthy", ["desk"]],
    "deployments": ["desk"],
    "run": "echo hello",
    "default": "echo hello",
    "events": EVENTS,
    "result": "told",
    "sent": "person",
    "answered": "hello Ada",
    "inside": "echo inside",
    "sessions": True,
}
"""What it sees of an API server, but for how a file that is no deployment file is refused."""
BLOCKING_08: dict[str, Any] = {
    "run": "echo hello",
    "stream": EVENTS,
    "result": "told",
    "services": SERVICES,
    "deployed": "echo hello",
}


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The port of a deployment of ours that the programs talk to."""
    program = [sys.executable, str(PROGRAMS / "server.py")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip().rpartition(":")[2]
        server.kill()
