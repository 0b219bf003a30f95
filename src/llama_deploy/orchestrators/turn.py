"""What an orchestrator is given for one decision: the task, its input, its own state, and notes that grow.

Nothing here decides anything; `typed` makes a turn and records what was changed in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from llama_deploy.orchestrators.ledger import Ledger
from llama_deploy.types.core import TaskDefinition


class NoState(BaseModel):
    """The state of an orchestrator that needs none."""


StateT = TypeVar("StateT", bound=BaseModel)


class Notes(MutableMapping[str, Any]):
    """JSON values by name, each recorded on its own: what grows (answers, turns) belongs here and not into the model.

    A change costs the bytes of that value, however many there are.
    """

    def __init__(self, own: MutableMapping[str, Any], path: str) -> None:
        self.own = self._own = own
        self.path = path
        self._prefix = f"{path}note:"

    def __getitem__(self, name: str) -> Any:
        return self._own[self._prefix + name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._own[self._prefix + name] = value

    def __delitem__(self, name: str) -> None:
        del self._own[self._prefix + name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._prefix + name in self._own

    def __iter__(self) -> Iterator[str]:
        length = len(self._prefix)
        return iter([key[length:] for key in self._own if key.startswith(self._prefix)])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Turn(Generic[StateT]):
    """What an orchestrator is given for one decision."""

    def __init__(
        self,
        *,
        task: TaskDefinition,
        given: Callable[[], Any],
        state: StateT,
        notes: Notes,
        shared: MutableMapping[str, Any],
    ) -> None:
        self.task = task
        self._given = given
        self.state = state
        """Change it in place; it is recorded with the decision."""
        self.notes = notes
        self.shared = shared
        """The state of the session, shared with its other tasks; of a task without a session, its own alone."""

    def ledger(self, name: str) -> Ledger[Any]:
        """A list that is only added to, kept once: services read it with `context.ledger(name)`, clients as well."""
        return Ledger(self.notes.own, self.notes.path, name)

    @cached_property
    def input(self) -> Any:
        """The task's input, parsed where it is a JSON object or array; of a node, what it was started with."""
        return self._given()
