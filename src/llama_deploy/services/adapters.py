"""The one place that knows which kinds of object can be services, and which adapter serves each.

The loader and `Deployment` hand over whatever the user named. Workflows, and agents and graphs of other libraries, are
recognised without importing the library: an object can only be of it when it is imported already.
"""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any, Literal

from llama_deploy.errors import SettingError
from llama_deploy.services.base import Service
from llama_deploy.services.function import FunctionService
from llama_deploy.types import RetryPolicy, ServiceLimits


def as_service(
    obj: Any,
    *,
    name: str | None = None,
    description: str | None = None,
    concurrency: int | None = None,
    run_timeout_s: float | None = None,
    retry: RetryPolicy | None = None,
    limits: ServiceLimits | None = None,
    memory: Literal["none", "session", "task"] | None = None,
) -> Service:
    """A service for `obj`: a `Service`, a function (async or not), a workflow (instance or class), or an agent.

    Agents are those of pydantic-ai and of the OpenAI Agents SDK, and compiled LangGraph graphs.

    What is given here takes the place of the object's own settings; the object itself is left as it is. Raises
    `SettingError` for anything else, and `UnresolvedAnnotationError` for a function whose annotations name nothing.
    """
    settings = {
        "service_name": name,
        "description": description,
        "concurrency": concurrency,
        "run_timeout_s": run_timeout_s,
        "retry": retry,
        "limits": limits,
        "memory": memory,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    made = _adapt(obj, name)
    if given:
        made = copy.copy(made)
        made.definition = made.definition.model_copy(update=given)
    if isinstance(made, FunctionService):
        made.prepare()
    return made


def _adapt(obj: Any, name: str | None) -> Service:
    if isinstance(obj, Service):
        return obj
    if _is_workflow(obj):
        from llama_deploy.services.workflow import PlainWorkflowService

        return PlainWorkflowService(obj, name=name)
    agent = _agent(obj, name)
    if agent is not None:
        return agent
    if inspect.isclass(obj) and issubclass(obj, Service):
        raise SettingError(f"{obj.__qualname__} is a class", fix=f"name an object of it: {obj.__qualname__}(...)")
    if callable(obj) and not inspect.isclass(obj):
        return FunctionService(obj, name=name)
    raise SettingError(
        f"an object of type {type(obj).__qualname__} cannot be a service",
        why="a service is a function, a workflow, an agent, or an object of a Service class",
        fix="name a function decorated with @service, or a Workflow",
    )


def _is_workflow(obj: Any) -> bool:
    engine: Any = sys.modules.get("workflows.workflow")
    if engine is None:
        return False
    return isinstance(obj, engine.Workflow) or (inspect.isclass(obj) and issubclass(obj, engine.Workflow))


def _agent(obj: Any, name: str | None) -> Service | None:
    """A service for an agent or a graph of another library; None for anything else."""
    if _is_of("pydantic_ai.agent", "AbstractAgent", obj):
        from llama_deploy.services.agents.pydantic_ai import PydanticAIService

        return PydanticAIService(obj, name=name)
    if _is_of("langgraph.pregel", "Pregel", obj):
        from llama_deploy.services.agents.langgraph import LangGraphService

        return LangGraphService(obj, name=name)
    if _is_of("agents.run", "Runner", None) and _is_of("agents.agent", "Agent", obj):  # not any package named `agents`
        from llama_deploy.services.agents.openai_agents import OpenAIAgentService

        return OpenAIAgentService(obj, name=name)
    if _is_of("langgraph.graph", "StateGraph", obj):
        raise SettingError("the graph is not compiled", fix="serve graph.compile()")
    return None


def _is_of(module: str, name: str, obj: Any) -> bool:
    """Whether `obj` is an instance of a class of a module that is imported; with None, whether there is the class."""
    found = getattr(sys.modules.get(module), name, None)
    return inspect.isclass(found) and (obj is None or isinstance(obj, found))
