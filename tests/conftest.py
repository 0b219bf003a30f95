"""What every test may ask for. Fixtures that only one part of the tests needs live beside that part."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("no clock decides", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock decides")
pytest.register_assert_rewrite("llama_deploy.testing")  # the assertions of the conformance suites speak too


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Async tests run on asyncio's own loop, in debug mode never: what a user runs is what is tested."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def free_port() -> int:
    """A loopback TCP port on which nothing listens now. Prefer port 0 where the server tells its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


SLOW = (
    "apiserver/test_reload.py",
    "apiserver/test_supervisor.py",
    "client/test_end_to_end.py",
    "control_plane/http/test_fuzz.py",
    "control_plane/http/test_refusals.py",
    "control_plane/http/test_sockets.py",
    "control_plane/test_conflicts.py",
    "control_plane/test_frame_fuzz.py",
    "control_plane/test_recovery.py",
    "control_plane/test_shared_state.py",
    "control_plane/test_streams.py",
    "docs/test_snippets.py",
    "examples/",
    "orchestrators/test_properties.py",
    "processes/",
    "services/test_link.py",
    "services/test_workflow_people.py",
    "testing/simulation/test_defects.py",
    "testing/simulation/test_many_seeds.py",
    "test_install.py",
    "test_package.py",
)
"""Where tests start programs, wait for real time, or go through very many cases: `make test` runs them, and
`make test-fast` does not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow by the place where it stands."""
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
