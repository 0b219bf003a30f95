"""The suite that every state store must pass, for third parties too.

Subclass it under a name that your test runner collects, say how a store is made, and run the async tests:

    class TestMyStore(StoreConformance):
        def make_store(self) -> StateStore:
            return MyStore(self.url)

It uses plain `assert` and no test framework. `pytest.register_assert_rewrite("llama_deploy.testing")`, before the
import, makes its failures speak.
"""

from __future__ import annotations

from llama_deploy.testing.store_backup import BackupConformance
from llama_deploy.testing.store_conditions import ConditionConformance
from llama_deploy.testing.store_keeping import KeepingConformance
from llama_deploy.testing.store_reads import ReadConformance
from llama_deploy.testing.store_shards import ShardConformance
from llama_deploy.testing.store_transitions import TransitionConformance


class StoreConformance(
    TransitionConformance,
    ReadConformance,
    ConditionConformance,
    KeepingConformance,
    BackupConformance,
    ShardConformance,
):
    """Every promise of `llama_deploy.state_stores.base`, one test each. Each test begins with an empty store."""
