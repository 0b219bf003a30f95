"""Orchestrators: who gets which message next, decided as a value.

Everything here is pure: no I/O, no clock, no chance. Only the configuration classes read the environment; they, and
the catalogue, are imported when they are first used.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names
from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.orchestrators.simple import SimpleOrchestrator
from llama_deploy.orchestrators.utils import get_result_key, get_stream_key

if TYPE_CHECKING:
    from llama_deploy.orchestrators.actions import (
        Action,
        Again,
        Answer,
        Ask,
        Compensate,
        Emit,
        Fail,
        Finish,
        Hold,
        Release,
        Run,
        TakeBack,
        Wait,
    )
    from llama_deploy.orchestrators.budget import Budget
    from llama_deploy.orchestrators.cache import Cache
    from llama_deploy.orchestrators.config import SimpleOrchestratorConfig
    from llama_deploy.orchestrators.fallback import Fallback
    from llama_deploy.orchestrators.gate import Gate
    from llama_deploy.orchestrators.graph import Graph
    from llama_deploy.orchestrators.graph_edges import Edge
    from llama_deploy.orchestrators.group_chat import GroupChat, Transcript
    from llama_deploy.orchestrators.handoff import Handoff
    from llama_deploy.orchestrators.ledger import Ledger
    from llama_deploy.orchestrators.map import Map
    from llama_deploy.orchestrators.nodes import Node
    from llama_deploy.orchestrators.parallel import Parallel
    from llama_deploy.orchestrators.picture import Picture, PictureEdge
    from llama_deploy.orchestrators.planner import Planner
    from llama_deploy.orchestrators.retry import Retry
    from llama_deploy.orchestrators.router import Router
    from llama_deploy.orchestrators.saga import Saga
    from llama_deploy.orchestrators.sequence import Sequence
    from llama_deploy.orchestrators.timeout import Timeout
    from llama_deploy.orchestrators.turn import NoState, Notes, Turn
    from llama_deploy.orchestrators.typed import Orchestrator
    from llama_deploy.orchestrators.vote import Vote
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Action": "llama_deploy.orchestrators.actions",
            "Again": "llama_deploy.orchestrators.actions",
            "Answer": "llama_deploy.orchestrators.actions",
            "Ask": "llama_deploy.orchestrators.actions",
            "Budget": "llama_deploy.orchestrators.budget",
            "Cache": "llama_deploy.orchestrators.cache",
            "Compensate": "llama_deploy.orchestrators.actions",
            "Edge": "llama_deploy.orchestrators.graph_edges",
            "Emit": "llama_deploy.orchestrators.actions",
            "Fail": "llama_deploy.orchestrators.actions",
            "Fallback": "llama_deploy.orchestrators.fallback",
            "Finish": "llama_deploy.orchestrators.actions",
            "Gate": "llama_deploy.orchestrators.gate",
            "Graph": "llama_deploy.orchestrators.graph",
            "GroupChat": "llama_deploy.orchestrators.group_chat",
            "Handoff": "llama_deploy.orchestrators.handoff",
            "Hold": "llama_deploy.orchestrators.actions",
            "Ledger": "llama_deploy.orchestrators.ledger",
            "Map": "llama_deploy.orchestrators.map",
            "NoState": "llama_deploy.orchestrators.turn",
            "Node": "llama_deploy.orchestrators.nodes",
            "Notes": "llama_deploy.orchestrators.turn",
            "Orchestrator": "llama_deploy.orchestrators.typed",
            "Parallel": "llama_deploy.orchestrators.parallel",
            "Picture": "llama_deploy.orchestrators.picture",
            "PictureEdge": "llama_deploy.orchestrators.picture",
            "Planner": "llama_deploy.orchestrators.planner",
            "Release": "llama_deploy.orchestrators.actions",
            "Retry": "llama_deploy.orchestrators.retry",
            "Router": "llama_deploy.orchestrators.router",
            "Run": "llama_deploy.orchestrators.actions",
            "Saga": "llama_deploy.orchestrators.saga",
            "Sequence": "llama_deploy.orchestrators.sequence",
            "SimpleOrchestratorConfig": "llama_deploy.orchestrators.config",
            "TakeBack": "llama_deploy.orchestrators.actions",
            "Timeout": "llama_deploy.orchestrators.timeout",
            "Transcript": "llama_deploy.orchestrators.group_chat",
            "Turn": "llama_deploy.orchestrators.turn",
            "Vote": "llama_deploy.orchestrators.vote",
            "Wait": "llama_deploy.orchestrators.actions",
        },
    )

__all__ = [
    "Action",
    "Again",
    "Answer",
    "Ask",
    "BaseOrchestrator",
    "Budget",
    "Cache",
    "Compensate",
    "Edge",
    "Emit",
    "Fail",
    "Fallback",
    "Finish",
    "Gate",
    "Graph",
    "GroupChat",
    "Handoff",
    "Hold",
    "Ledger",
    "Map",
    "NoState",
    "Node",
    "Notes",
    "Orchestrator",
    "Parallel",
    "Picture",
    "PictureEdge",
    "Planner",
    "Release",
    "Retry",
    "Router",
    "Run",
    "Saga",
    "Sequence",
    "SimpleOrchestrator",
    "SimpleOrchestratorConfig",
    "TakeBack",
    "Timeout",
    "Transcript",
    "Turn",
    "Vote",
    "Wait",
    "get_result_key",
    "get_stream_key",
]
