"""Orchestrators described by data (a deployment file, JSON): a name of the catalogue and its parameters.

A node is a service's name, or an object with one key, which is a name of the catalogue again:
`{"sequence": {"nodes": ["draft", "check"]}}`. A mistake is told with the path to it, so that whoever read the data
from a file can say the line. What a description cannot say (a function as a condition) has a small form of data here;
for more, write the orchestrator in Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from llama_deploy.orchestrators.budget import Budget
from llama_deploy.orchestrators.cache import Cache
from llama_deploy.orchestrators.described_edges import edges
from llama_deploy.orchestrators.described_errors import DescriptionError, Path, close
from llama_deploy.orchestrators.fallback import Fallback
from llama_deploy.orchestrators.gate import Gate
from llama_deploy.orchestrators.graph import Graph
from llama_deploy.orchestrators.group_chat import GroupChat
from llama_deploy.orchestrators.handoff import Handoff
from llama_deploy.orchestrators.map import Map
from llama_deploy.orchestrators.nodes import Node
from llama_deploy.orchestrators.parallel import Parallel
from llama_deploy.orchestrators.planner import Planner
from llama_deploy.orchestrators.retry import Retry
from llama_deploy.orchestrators.router import Router
from llama_deploy.orchestrators.saga import Saga
from llama_deploy.orchestrators.sequence import Sequence
from llama_deploy.orchestrators.timeout import Timeout
from llama_deploy.orchestrators.typed import Orchestrator
from llama_deploy.orchestrators.vote import Vote
from llama_deploy.types.retry import RetryPolicy


def build(name: str, parameters: Mapping[str, Any], path: Path = ()) -> Orchestrator[Any]:
    """The orchestrator of this name in the catalogue. Raises `DescriptionError`; nothing else, whatever it is given."""
    if name not in CATALOGUE:
        raise DescriptionError(f"there is no orchestrator `{name}`{close(name, CATALOGUE)}", path)
    cls, readers = CATALOGUE[name]
    accepted = [*readers, *(word for word in inspect.signature(cls).parameters if not _open(cls, word))]
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for key, value in parameters.items():
        word, here = str(key).replace("-", "_"), (*path, key)
        if word not in accepted and not _takes_any(cls):
            known = ", ".join(f"`{each.replace('_', '-')}`" for each in dict.fromkeys(accepted))
            hint = close(word, accepted) or f"; it has {known}"
            raise DescriptionError(f"`{name}` has no parameter `{key}`{hint}", here)
        reader = readers.get(word)
        read = value if reader is None else reader(value, here)
        if reader is _nodes and isinstance(read, list):
            arguments = read
        elif reader is _nodes or reader is _steps:
            keywords.update(read)
        else:
            keywords[word] = read
    try:
        return cls(*arguments, **keywords)  # type: ignore[no-any-return]
    except (ValueError, TypeError) as error:
        told = str(error).replace(f"{cls.__name__}.__init__() ", "")
        raise DescriptionError(f"`{name}`: {told}", path) from error


def _open(cls: Callable[..., Any], word: str) -> bool:
    kind = inspect.signature(cls).parameters[word].kind
    return kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _takes_any(cls: Callable[..., Any]) -> bool:
    return cls is Budget  # its limits have whatever names services report


# --- reading parameters -----------------------------------------------------------------------------------------------


def _node(value: Any, path: Path) -> Node:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, parameters),) = value.items()
        if not isinstance(parameters, Mapping):
            raise DescriptionError(f"the parameters of `{name}` are an object", (*path, name))
        return build(str(name), parameters, (*path, name))
    raise DescriptionError("a node is a service's name, or an object with one key: `{sequence: {nodes: […]}}`", path)


def _nodes(value: Any, path: Path) -> list[Node] | dict[str, Node]:
    if isinstance(value, Mapping):
        return _named(value, path)
    if isinstance(value, list):
        return [_node(item, (*path, position)) for position, item in enumerate(value)]
    raise DescriptionError("nodes are a list, or an object of nodes by name", path)


def _named(value: Any, path: Path) -> dict[str, Node]:
    if not isinstance(value, Mapping):
        raise DescriptionError("this is an object of nodes by name", path)
    return {str(name): _node(node, (*path, name)) for name, node in value.items()}


def _node_or_word(word: str) -> Callable[[Any, Path], Any]:
    return lambda value, path: value if value == word else _node(value, path)


def _choice(value: Any, path: Path) -> Any:
    """A deciding node, or `{"field": name}`: the route that the input names in that field."""
    if isinstance(value, Mapping) and set(value) == {"field"}:
        field = str(value["field"])
        return lambda given: given.get(field, "") if isinstance(given, dict) else ""
    return _node(value, path)


def _policy(value: Any, path: Path) -> RetryPolicy:
    if not isinstance(value, Mapping):
        raise DescriptionError("a retry policy is an object, such as `{max-retries: 3}`", path)
    known = RetryPolicy.model_fields
    for key in value:
        if str(key).replace("-", "_") not in known:
            raise DescriptionError(f"a retry policy has no `{key}`{close(str(key), known)}", (*path, key))
    try:
        return RetryPolicy.model_validate({str(key).replace("-", "_"): item for key, item in value.items()})
    except ValueError as error:
        raise DescriptionError(str(error), path) from error


def _steps(value: Any, path: Path) -> dict[str, Any]:
    """Steps of a saga: `{name: {do: node, undo: node}}`, or `{name: node}` for one that needs no undoing."""
    if not isinstance(value, Mapping):
        raise DescriptionError("steps are an object by name: `{book: {do: book, undo: cancel}}`", path)
    found: dict[str, Any] = {}
    for name, step in value.items():
        here = (*path, name)
        if isinstance(step, Mapping) and "do" in step:
            undo = _node(step["undo"], (*here, "undo")) if step.get("undo") is not None else None
            found[str(name)] = (_node(step["do"], (*here, "do")), undo)
        else:
            found[str(name)] = (_node(step, here), None)
    return found


_Readers = dict[str, Callable[[Any, Path], Any]]
_ONE: _Readers = {"node": _node}

CATALOGUE: dict[str, tuple[Any, _Readers]] = {
    "sequence": (Sequence, {"nodes": _nodes}),
    "parallel": (Parallel, {"nodes": _nodes}),
    "map": (Map, {"node": _node, "reduce": _node}),
    "graph": (Graph, {"nodes": _named, "edges": edges}),
    "router": (Router, {"choose": _choice, "routes": _named}),
    "handoff": (Handoff, {"agents": _named}),
    "group-chat": (
        GroupChat,
        {"participants": _named, "select": _node_or_word("round_robin"), "conclude": _node},
    ),
    "planner": (Planner, {"planner": _node, "workers": _named, "judge": _node}),
    "gate": (Gate, {}),
    "retry": (Retry, {"node": _node, "policy": _policy}),
    "fallback": (Fallback, {"nodes": _nodes}),
    "timeout": (Timeout, {"node": _node, "instead": _node}),
    "budget": (Budget, _ONE),
    "cache": (Cache, _ONE),
    "vote": (Vote, _ONE),
    "saga": (Saga, {"steps": _steps}),
}
"""By the name that a description uses: the class, and how those of its parameters are read that are not plain."""
