"""What helps to test services, orchestrators and adapters: a clock that the test moves, and the conformance suites.

Nothing here imports a test framework.
"""

from llama_deploy.testing.clock import ManualClock
from llama_deploy.testing.orchestrator_play import Play, play
from llama_deploy.testing.queue_conformance import QueueConformance
from llama_deploy.testing.store_conformance import StoreConformance

__all__ = ["ManualClock", "Play", "QueueConformance", "StoreConformance", "play"]
