"""Moving a task in flight to the present version of its orchestrator: what its state becomes is one recorded decision.

A task keeps the version that it began with for as long as that is deployed. Here somebody says that it shall go on with
the present one instead. What is open stays open, and its answers are folded by the new version.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.policies import version_in
from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import clean
from llama_deploy.control_plane.session_state import Delta
from llama_deploy.control_plane.signals import Settled, Signals, ended_error, once_recorded
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import LlamaDeployError, OrchestratorError
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.state_stores.base import Transition


class Migrations:
    """Moves tasks of one engine."""

    def __init__(self, engine: Engine, signals: Signals) -> None:
        self._engine = engine
        self._signals = signals

    async def migrate(self, task_id: str, *, reason: str = "", by: str = "") -> TaskEntry:
        """Have the present version of its orchestrator decide about a task. When it returns, that is recorded.

        A task that it decides about already stays as it is. Raises `OrchestratorError` where that version does not say
        how it reads the state, or fails at it: the task goes on as it was. Raises `TaskEndedError`,
        `TaskNotFoundError`.
        """
        return await self._signals.record_in_turn(task_id, partial(self._migrate, clean(reason), clean(by)))

    def _migrate(self, reason: str, by: str, entry: TaskEntry, settled: Settled) -> None:
        engine = self._engine
        if entry.final:
            once_recorded(engine, entry, settled, ended_error(entry))
            return
        try:
            policy = engine.policies.present(entry.decided_by)
            mark = engine.policies.mark(policy, entry.definition)
            if mark == entry.decided_by:
                once_recorded(engine, entry, settled, None)
                return
            delta = _migrated(entry, policy, version_in(entry.decided_by))
        except LlamaDeployError as error:
            settled(error)
            return
        refusal = engine.recording.history_refusal(entry)
        if refusal is not None:
            settled(refusal)
            return
        record = Record(state="", orchestrator=mark or "@1", reason=reason or None, by=by or None)
        transition = Transition(settled=settled)
        engine.recording.record_delta(entry, transition, record, delta)
        entry.policy, entry.decided_by = policy, mark
        engine.recording.commit(entry, transition, "migrated", record, now=engine.clock.now(), state=entry.row.state)


def _migrated(entry: TaskEntry, policy: BaseOrchestrator, version: int) -> Delta:
    """What the state becomes. Raises `OrchestratorError`."""
    given = entry.private.view(entry.session)
    try:
        state: Any = policy.migrate_task(entry.definition.model_copy(deep=True), given, version=version)
        return entry.private.difference(entry.session, given, state, None)
    except LlamaDeployError:
        raise
    except Exception as error:  # the edge of third-party code: whoever asked is told
        raise OrchestratorError(
            f"{type(policy).__name__} cannot take over task {entry.row.task_id} from version {version}",
            why=str(error).encode("utf-8", "backslashreplace").decode() or type(error).__name__,
            fix="say in its `migrate` how the earlier state is read; the task goes on with the version that it has",
        ) from error
