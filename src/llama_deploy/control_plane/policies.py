"""Which orchestrator decides about a task: the deployment's own, or one of several that it has by name.

What a service calls from inside its code is for the service that it names, and no other: many orchestrators have the
same done for every task, whatever it names. A task keeps the version that it began with: its first history entry says
which one that was, wherever there is anything to say. A later version decides about it only if it is the only one
there, and says how it reads the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from llama_deploy.errors import InvalidRequestError, OrchestratorError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.types import TaskDefinition, TaskResult

CALLED = "__called__"
"""The name, in the record, of what decides about a called task."""


class Policies:
    """The orchestrators of one control plane."""

    def __init__(self, default: BaseOrchestrator, named: Mapping[str, BaseOrchestrator]) -> None:
        self.default = default
        self._called = default
        self._named = dict(named)
        if not isinstance(default, SimpleOrchestrator):
            self._called = self._named[CALLED] = SimpleOrchestrator(final_message_type=None)

    @property
    def names(self) -> list[str]:
        """The names that a task may ask for."""
        return sorted(name for name in self._named if "@" not in name and name != CALLED)

    def choose(self, definition: TaskDefinition) -> BaseOrchestrator:
        """The one that a new task asks for. Raises `InvalidRequestError` for a name that is not there."""
        options = definition.options
        if options is None or options.orchestrator is None:
            called = options is not None and options.origin is not None and options.origin.kind == "child"
            return self._called if called and definition.agent_id is not None else self.default
        policy = self._named.get(options.orchestrator) if options.orchestrator != CALLED else None
        if policy is None:
            close = get_close_matches(options.orchestrator, self.names, 1)
            raise InvalidRequestError(
                f"there is no orchestrator {options.orchestrator!r}"
                + (f": did you mean {close[0]!r}?" if close else ""),
                why=f"orchestrators by name: {', '.join(self.names) or 'none'}",
                fix="name one of them, or none for the default",
            )
        return policy

    def mark(self, policy: BaseOrchestrator, definition: TaskDefinition) -> str:
        """What the first history entry says of the policy, as `name@version`; empty for a default in version 1."""
        name = definition.options.orchestrator if definition.options is not None else None
        if name is None and policy is self._called is not self.default:
            name = CALLED
        version = _version(policy)
        return "" if name is None and version == 1 else f"{name or ''}@{version}"

    def find(self, mark: str) -> BaseOrchestrator:
        """The one that decides about a recorded task: of the version that it began with, else the one there is."""
        name, _, version = mark.rpartition("@")
        current = self._named.get(name) if name else self.default
        if current is not None and str(_version(current)) == (version or "1"):
            return current
        return self._named.get(f"{name}@{version or '1'}") or current or Absent(name)

    def present(self, mark: str) -> BaseOrchestrator:
        """The one that would decide about a new task of the same name. Raises `OrchestratorError` where none would."""
        name = mark.rpartition("@")[0]
        current = self._named.get(name) if name else self.default
        if current is None:
            raise OrchestratorError(f"no orchestrator {name!r} is deployed", fix=f"deploy one under {name!r}")
        return current


class Absent(BaseOrchestrator):
    """In the place of an orchestrator that a recorded task began with and that is not deployed any more."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """Raise `OrchestratorError`."""
        del state
        raise self._error(task_def.task_id)

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Raise `OrchestratorError`."""
        del state
        raise self._error(result.task_id)

    def _error(self, task_id: str) -> OrchestratorError:
        return OrchestratorError(
            f"the orchestrator {self.name!r} that task {task_id} began with is not deployed any more",
            fix=f"deploy it again under {self.name!r}, or cancel the task",
        )


def version_in(mark: str) -> int:
    """The version in a mark."""
    version = mark.rpartition("@")[2]
    return int(version) if version.isdigit() else 1


def _version(policy: BaseOrchestrator) -> int:
    version = getattr(policy, "version", 1)
    return version if isinstance(version, int) else 1
