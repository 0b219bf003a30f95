"""Orchestrators: who gets which message next, decided as a value.

Everything here is pure: no I/O, no clock, no chance. Only the configuration classes read the environment, and they
are imported when they are first used.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names
from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.orchestrators.simple import SimpleOrchestrator
from llama_deploy.orchestrators.utils import get_result_key, get_stream_key

if TYPE_CHECKING:
    from llama_deploy.orchestrators.config import SimpleOrchestratorConfig
else:
    __getattr__, __dir__ = lazy_names(__name__, {"SimpleOrchestratorConfig": "llama_deploy.orchestrators.config"})

__all__ = [
    "BaseOrchestrator",
    "SimpleOrchestrator",
    "SimpleOrchestratorConfig",
    "get_result_key",
    "get_stream_key",
]
