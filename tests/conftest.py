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
    "client/test_artifacts.py",
    "client/test_connection.py",
    "client/test_end_to_end.py",
    "control_plane/http/test_fuzz.py",
    "control_plane/http/test_refusals.py",
    "control_plane/http/test_sockets.py",
    "control_plane/http/test_streams.py",
    "control_plane/test_backpressure.py",
    "control_plane/test_catalogue_crashes.py",
    "control_plane/test_children.py",
    "control_plane/test_conflicts.py",
    "control_plane/test_contents.py",
    "control_plane/test_frame_fuzz.py",
    "control_plane/test_large.py",
    "control_plane/test_limits_model.py",
    "control_plane/test_recovery.py",
    "control_plane/test_repeats.py",
    "control_plane/test_schedules.py",
    "control_plane/test_several_policies.py",
    "control_plane/test_shared_state.py",
    "control_plane/test_stopping.py",
    "control_plane/test_streams.py",
    "control_plane/test_transfers_of_tasks.py",
    "control_plane/test_webhooks.py",
    "docs/test_snippets.py",
    "examples/",
    "orchestrators/test_properties.py",
    "processes/",
    "services/test_endpoint.py",
    "services/test_link.py",
    "services/test_program.py",
    "services/test_workflow_people.py",
    "state_stores/test_backups.py",
    "state_stores/test_encrypted.py",
    "state_stores/test_migration.py",
    "test_install.py",
    "test_package.py",
    "testing/simulation/test_defects.py",
    "testing/simulation/test_many_seeds.py",
)
"""Where tests start programs, wait for real time, or go through very many cases: `make test` runs them, and
`make test-fast` does not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow by the place where it stands."""
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
