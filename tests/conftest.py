"""What every test may ask for. Fixtures that only one part of the tests needs live beside that part."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import ports

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
    return ports.free_port()


SLOW = (
    "apiserver/deployments/",
    "apiserver/test_reload.py",
    "apiserver/test_served_access.py",
    "apiserver/test_supervisor.py",
    "client/test_artifacts.py",
    "client/test_connection.py",
    "client/test_end_to_end.py",
    "chaos/",
    "cli/test_access.py",
    "containers/",
    "control_plane/http/access/",
    "control_plane/http/published/",
    "control_plane/http/test_fuzz.py",
    "control_plane/http/test_protocol.py",
    "control_plane/http/test_published_contract.py",
    "control_plane/http/test_published_core.py",
    "control_plane/http/test_published_server.py",
    "control_plane/http/test_refusals.py",
    "control_plane/http/test_sockets.py",
    "control_plane/http/test_streams.py",
    "control_plane/routing/",
    "control_plane/test_backpressure.py",
    "control_plane/test_catalogue_crashes.py",
    "control_plane/test_children.py",
    "control_plane/test_conflicts.py",
    "control_plane/test_contents.py",
    "control_plane/test_frame_fuzz.py",
    "control_plane/test_large.py",
    "control_plane/test_leadership.py",
    "control_plane/test_limits_model.py",
    "control_plane/test_memory.py",
    "control_plane/test_service_memory.py",
    "control_plane/test_postgres.py",
    "control_plane/test_recovery.py",
    "control_plane/test_repeats.py",
    "control_plane/test_schedules.py",
    "control_plane/test_several_planes.py",
    "control_plane/test_several_policies.py",
    "control_plane/test_shared_state.py",
    "control_plane/test_stopping.py",
    "control_plane/test_streams.py",
    "control_plane/test_transfers_of_tasks.py",
    "control_plane/test_webhooks.py",
    "deploy/",
    "docs/test_laptop_to_cluster.py",
    "docs/test_snippets.py",
    "message_queues/carriers/",
    "examples/",
    "orchestrators/test_properties.py",
    "processes/",
    "services/agents/test_langgraph.py",
    "services/agents/test_openai_agents.py",
    "services/agents/test_provider_errors.py",
    "services/agents/test_pydantic_ai.py",
    "services/agents/test_tools_of_libraries.py",
    "services/test_agent_memory.py",
    "services/agents/test_conversations.py",
    "services/test_nested.py",
    "services/test_processes.py",
    "services/test_endpoint.py",
    "services/test_link.py",
    "services/test_program.py",
    "services/test_workflow_people.py",
    "state_stores/test_backups.py",
    "state_stores/test_encrypted.py",
    "state_stores/test_migration.py",
    "state_stores/test_postgres",
    "state_stores/test_shards.py",
    "state_stores/test_sqlite.py",
    "test_install.py",
    "test_package.py",
    "testing/simulation/test_defects.py",
    "testing/simulation/test_many_seeds.py",
    "testing/simulation/test_seeds.py",
)
"""Where tests start programs, wait for real time, or go through very many cases: `make test` runs them, and
`make test-fast` does not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow by the place where it stands."""
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
