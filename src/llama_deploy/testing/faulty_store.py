"""A state store in memory whose commits fail, take as long as a test wants, or are refused.

It is a `MemoryStore` in everything else, and keeps what the contract promises: a commit that fails is kept and tried
again, one that is refused has changed nothing.
"""

from __future__ import annotations

from llama_deploy.errors import CommitConflictError, LlamaDeployError
from llama_deploy.state_stores import MemoryStore
from llama_deploy.state_stores.base import Transition


class FaultyStore(MemoryStore):
    """A `MemoryStore` that a test disturbs."""

    def __init__(self) -> None:
        super().__init__()
        self.last_error = ""
        self._failing = self._held = False
        self._to_refuse = 0
        self.refused = 0
        """How many transitions were refused on purpose."""

    @property
    def healthy(self) -> bool:
        return not self._failing

    def fail(self, why: str = "disk full") -> None:
        """No commit succeeds until `mend`; what is handed over waits, and new work is refused."""
        self._failing, self.last_error = True, why

    def mend(self) -> None:
        """Commits succeed again, first of all what has waited."""
        self._failing, self.last_error = False, ""
        self._commit()

    def hold(self) -> None:
        """Commits take until `release`: what is handed over is neither recorded nor refused."""
        self._held = True

    def release(self) -> None:
        """Record what was held up, in one commit."""
        self._held = False
        self._commit()

    def refuse(self, count: int = 1) -> None:
        """Refuse the next changes of tasks that exist, as if somebody else had changed them."""
        self._to_refuse += count

    def lose_uncommitted(self) -> None:
        """Forget what was handed over and not committed, and tell nobody: what a crash does."""
        self._handed_over.clear()
        self._unsettled = 0

    def _commit(self) -> None:
        if not self._failing and not self._held:
            super()._commit()

    def _apply(self, transition: Transition) -> LlamaDeployError | None:
        if self._to_refuse and transition.task is not None and transition.expected_version:
            self._to_refuse -= 1
            self.refused += 1
            return CommitConflictError("refused on purpose")
        return super()._apply(transition)
