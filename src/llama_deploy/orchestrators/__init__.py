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
    from llama_deploy.orchestrators.config import SimpleOrchestratorConfig
    from llama_deploy.orchestrators.gate import Gate
    from llama_deploy.orchestrators.graph import Edge, Graph
    from llama_deploy.orchestrators.group_chat import GroupChat, Transcript
    from llama_deploy.orchestrators.handoff import Handoff
    from llama_deploy.orchestrators.map import Map
    from llama_deploy.orchestrators.nodes import Node
    from llama_deploy.orchestrators.parallel import Parallel
    from llama_deploy.orchestrators.picture import Picture, PictureEdge
    from llama_deploy.orchestrators.planner import Planner
    from llama_deploy.orchestrators.router import Router
    from llama_deploy.orchestrators.sequence import Sequence
    from llama_deploy.orchestrators.turn import NoState, Notes, Turn
    from llama_deploy.orchestrators.typed import Orchestrator
    from llama_deploy.orchestrators.wrappers import Budget, Cache, Fallback, Retry, Saga, Timeout, Vote
else:
    _PLACES = {
        "actions": "Action Again Answer Ask Compensate Emit Fail Finish Hold Release Run TakeBack Wait",
        "config": "SimpleOrchestratorConfig",
        "gate": "Gate",
        "graph": "Edge Graph",
        "group_chat": "GroupChat Transcript",
        "handoff": "Handoff",
        "map": "Map",
        "nodes": "Node",
        "picture": "Picture PictureEdge",
        "parallel": "Parallel",
        "planner": "Planner",
        "router": "Router",
        "sequence": "Sequence",
        "turn": "NoState Notes Turn",
        "typed": "Orchestrator",
        "wrappers": "Budget Cache Fallback Retry Saga Timeout Vote",
    }
    __getattr__, __dir__ = lazy_names(
        __name__, {name: f"{__name__}.{place}" for place, names in _PLACES.items() for name in names.split()}
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
