"""What helps to test services, orchestrators, stores and queues, for third parties too.

`InMemorySystem` is a whole system in memory that can be made to fail, `ManualClock` a clock that the test moves,
`play` runs an orchestrator without a control plane; the conformance suites hold adapters to their contracts.
`simulation` runs random programs under random faults. Nothing here imports a test framework.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names
from llama_deploy.testing.clock import ManualClock
from llama_deploy.testing.faulty_queue import FaultyQueue
from llama_deploy.testing.faulty_store import FaultyStore
from llama_deploy.testing.orchestrator_conformance import OrchestratorConformance, check_orchestrator
from llama_deploy.testing.orchestrator_play import Play, play
from llama_deploy.testing.queue_conformance import QueueConformance
from llama_deploy.testing.store_conformance import StoreConformance

if TYPE_CHECKING:
    from llama_deploy.testing.system import InMemorySystem, Instance
else:  # they bring the control plane along
    __getattr__, __dir__ = lazy_names(
        __name__, dict.fromkeys(["InMemorySystem", "Instance"], "llama_deploy.testing.system")
    )

__all__ = [
    "FaultyQueue",
    "FaultyStore",
    "InMemorySystem",
    "Instance",
    "ManualClock",
    "OrchestratorConformance",
    "Play",
    "QueueConformance",
    "StoreConformance",
    "check_orchestrator",
    "play",
]
