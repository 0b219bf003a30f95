"""What services remember of a session or of a task, and whose turn it is to go on from it.

A service that keeps memory is handed it with each step and gives it back, changed, with the answer; both are one
commit. Steps of one service that share a memory run one after the other, in the order in which they were sent: a turn
begins when a step is handed out and ends when it is answered or not wanted any more, so retries, questions to people
and parking are part of it. Services without memory cost a look into an empty dictionary. The memory of a session is a
key of its state that no policy sees; the memory of a task, or of a task in no session, stands in the task's history.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane.records import Json, Record, StateChange
from llama_deploy.control_plane.refusals import resolve, too_large
from llama_deploy.control_plane.session_state import SessionState
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import (
    InvalidRequestError,
    LlamaDeployError,
    MemoryBusyError,
    MemoryMovedError,
    SessionNotFoundError,
)
from llama_deploy.state_stores.base import SessionRow, SharedWrite, Transition
from llama_deploy.types.reserved import MEMORY_KEY

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

Scope = tuple[str, str]
"""A service, and the session or the task whose memory it keeps."""
EMPTY = b"{}"


class Kept(msgspec.Struct, omit_defaults=True):
    """The memory of one service in one session, as it is stored."""

    memory: Json = msgspec.Raw(EMPTY)
    turn: str | None = None
    """The parked step that goes on from it: nobody else has a turn before that has ended, also after a restart."""


_encode = msgspec.json.Encoder().encode
_kept = msgspec.json.Decoder(Kept).decode


class Memory:
    """The memories of one engine's services."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.modes: dict[str, str] = {}
        """`session` or `task` by service, for those that keep memory; the hot path asks whether there is any."""
        self._holders: dict[Scope, str] = {}
        """The step whose turn it is."""
        self._turns: dict[str, Scope] = {}
        """The same by step."""
        self._waiting: dict[Scope, dict[str, None]] = {}

    def refresh(self, service: str) -> None:
        """A service's definition is known, or has changed."""
        definition = self._engine.registry.definition(service)
        mode = definition.memory if definition is not None else "none"
        if mode == self.modes.get(service, "none"):
            return
        if mode == "none":
            del self.modes[service]
            return
        self.modes[service] = mode
        steps = [(one, step) for one in self._engine.cache.tasks.values() for step in one.open.values()]
        mine = [(entry, step) for entry, step in steps if step.service == service and step.published]
        self._engine.queue.withdraw([step.step_id for _, step in mine if step.claimed_by is None])
        for entry, step in mine:  # they were handed out without a memory
            if step.claimed_by is not None:
                self.reclaimed(entry, step)
            else:
                step.published = False
                self._engine.publish(entry, [step])

    # --- turns ------------------------------------------------------------------------------------------------------

    def passes(self, entry: TaskEntry, step: OpenStep) -> bool:
        """Whether it is a step's turn; where not, it is published when that comes."""
        if step.service not in self.modes or step.notification:
            return True
        if entry.session is not None and entry.session.stale:
            self._engine.spawn(self._publish_later(entry, step))
            return False
        scope = self._scope(entry, step)
        holder = self._holders.get(scope) or self._parked(entry, step)
        if holder is None:
            holder = step.step_id
        self._take_turn(scope, holder)
        if holder == step.step_id:
            return True
        self._waiting.setdefault(scope, {})[step.step_id] = None
        self._engine.cache.with_entry(
            holder.rpartition(":")[0],
            lambda found: None if _wants(found, holder) else self.end_turn(holder),
        )
        return False

    async def _publish_later(self, entry: TaskEntry, step: OpenStep) -> None:
        await self._engine.cache.session_of(entry)
        if not entry.stale and not step.published:
            self._engine.publish(entry, [step])

    def reclaimed(self, entry: TaskEntry, step: OpenStep) -> None:
        """An instance has come back with a step: it is its turn, unless another one has begun meanwhile."""
        if step.service in self.modes and not step.notification:
            scope = self._scope(entry, step)
            if scope not in self._holders:
                self._take_turn(scope, step.step_id)

    def settled(self, transition: Transition) -> None:
        """A transition is committed: the turn of each step that is not open any more has ended."""
        for step_id in transition.answered:
            self.end_turn(step_id)

    def end_turn(self, step_id: str) -> None:
        """A step is done with its memory. Repeating it does nothing."""
        scope = self._turns.pop(step_id, None)
        if scope is None:
            return
        del self._holders[scope]
        waiting = self._waiting.get(scope, {})
        while waiting and scope not in self._holders:
            next_id = next(iter(waiting))
            del waiting[next_id]
            entry = self._engine.cache.tasks.get(next_id.rpartition(":")[0])
            step = entry.open.get(next_id) if entry is not None and not entry.stale else None
            if entry is not None and step is not None and not step.published and not entry.row.paused:
                self._engine.publish(entry, [step])
        if not waiting:
            self._waiting.pop(scope, None)

    def forget(self, entry: TaskEntry) -> None:
        """Another control plane leads a task: its steps neither have a turn here nor wait for one."""
        for step_id in entry.open:
            scope = self._turns.pop(step_id, None)
            if scope is not None:
                self._holders.pop(scope, None)
            for waiting in self._waiting.values():
                waiting.pop(step_id, None)
        self._waiting = {scope: waiting for scope, waiting in self._waiting.items() if waiting}

    def reason(self, step: OpenStep) -> str | None:
        """Why a step waits for its turn, in words; `None` where it does not."""
        for (service, name), waiting in self._waiting.items() if step.service in self.modes else ():
            if step.step_id in waiting:
                holder = self._holders[service, name]
                return f"its turn at the memory of {service} in {self.modes.get(service)} {name}: {holder} has it"
        return None

    def busy(self, session: SessionState, service: str) -> str | None:
        """The step whose turn it is at the memory of a service in a session."""
        kept = self._kept(session, service)
        return self._holders.get((service, session.session_id)) or (kept.turn if kept is not None else None)

    def _scope(self, entry: TaskEntry, step: OpenStep) -> Scope:
        return step.service, entry.row.session_id if self.modes[step.service] == "session" else entry.row.task_id

    def _take_turn(self, scope: Scope, step_id: str) -> None:
        self._holders[scope] = step_id
        self._turns[step_id] = scope

    def _parked(self, entry: TaskEntry, step: OpenStep) -> str | None:
        """The step that had its turn when it was parked by an earlier control plane."""
        if self._session(entry, step.service) is None:
            others = (one for one in entry.open.values() if one.service == step.service and one is not step)
            return next((one.step_id for one in others if one.parked and one.resume == "redeliver"), None)
        assert entry.session is not None
        kept = self._kept(entry.session, step.service)
        return kept.turn if kept is not None else None

    # --- memory -----------------------------------------------------------------------------------------------------

    def given(self, entry: TaskEntry, step: OpenStep) -> tuple[bytes | None, int]:
        """JSON of what a step is handed, and its version."""
        if step.service not in self.modes or step.notification:
            return None, 0
        found, version = self._present(entry, step.service)
        return step.memory if step.memory is not None else found, version

    def refusal(
        self, entry: TaskEntry, step: OpenStep, memory: bytes | None, version: int | None
    ) -> LlamaDeployError | None:
        """Why a memory cannot be taken over that was made from this version."""
        if memory is None:
            return None
        limit = self._engine.settings.memory_bytes_max
        if len(memory) > limit:
            error = too_large(f"memory of {step.service}", len(memory), limit, "memory_bytes_max")
            error.fix = "keep a summary and the newest part, or raise memory_bytes_max"
            return error
        try:
            if not isinstance(msgspec.json.decode(memory), dict):
                return InvalidRequestError("the memory of a service is a JSON object")
        except (ValueError, RecursionError) as error_:
            return InvalidRequestError("the memory is not JSON", why=str(error_))
        if version is not None and version != self._present(entry, step.service)[1]:
            return MemoryMovedError(
                f"the memory of {step.service} has changed while step {step.step_id} worked from an earlier one",
                why="another attempt has gone on from it, or it was cleared",
            )
        return None

    def take(
        self, entry: TaskEntry, step: OpenStep, transition: Transition, record: Record, memory: bytes | None
    ) -> None:
        """Put what an answered step remembers into the commit of its answer."""
        memory = memory if memory is not None else step.memory
        if memory is None or step.service not in self.modes:
            return
        if record.change is None:
            record.change = StateChange(own_present=entry.private.own is not None)
        session = self._session(entry, step.service)
        if session is None:
            entry.private.keep(step.service, memory)
            record.change.memory[step.service] = msgspec.Raw(memory)
        else:
            record.change.shared.append(MEMORY_KEY + step.service)
            self._write(session, transition, step.service, Kept(msgspec.Raw(memory)))

    def park(self, entry: TaskEntry, step: OpenStep, transition: Transition) -> None:
        """A step is parked in mid-turn: that stands beside the memory, so that a restart does not forget it."""
        session = self._session(entry, step.service) if step.service in self.modes else None
        if session is None or step.step_id in session.turns:
            return
        memory = self._present(entry, step.service)[0] or EMPTY
        self._write(session, transition, step.service, Kept(msgspec.Raw(memory), step.step_id))

    def let_go(self, session: SessionState, transition: Transition) -> None:
        """Steps that were parked in mid-turn are not open any more, and have left nothing to remember."""
        for step_id in transition.answered:
            key = session.turns.get(step_id)
            if key is not None:
                kept = _kept(session.memories[key].encoded or EMPTY)
                self._write(session, transition, key.removeprefix(MEMORY_KEY), Kept(kept.memory))

    async def clear(self, session_id: str, service: str | None = None) -> list[str]:
        """Forget what a service, or every service, remembers of a session; the services that had something.

        It is recorded when this returns. Raises `SessionNotFoundError`, and `MemoryBusyError` where it is a step's turn
        at one of them; nothing is changed then.
        """
        engine = self._engine
        if await engine.store.load_session(session_id) is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}", fix="llamactl sessions list")
        session = await engine.cache.load_session(session_id)
        wanted = [key for key, cell in session.memories.items() if cell.encoded is not None]
        names = [key.removeprefix(MEMORY_KEY) for key in wanted if service in (None, key.removeprefix(MEMORY_KEY))]
        for name in names:
            if (holder := self.busy(session, name)) is not None:
                raise MemoryBusyError(
                    f"step {holder} is at work with what {name} remembers of session {session_id}",
                    why="what is cleared now would come back with its answer",
                    fix=f"wait for task {holder.rpartition(':')[0]}, or cancel it",
                )
        if not names:
            return []
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        transition = Transition(settled=partial(resolve, future), session=SessionRow(session_id, engine.clock.now()))
        for name in names:
            self._write(session, transition, name, Kept())
        session.changing()
        try:
            engine.store.record(transition)
            await future
        except LlamaDeployError:
            engine.cache.forget_session(session)
            raise
        finally:
            session.changed()
        return names

    def _present(self, entry: TaskEntry, service: str) -> tuple[bytes | None, int]:
        session = self._session(entry, service)
        if session is None:
            return entry.private.memory.get(service, (None, 0))
        kept = self._kept(session, service)
        return bytes(kept.memory) if kept is not None else None, session.version(MEMORY_KEY + service)

    def _session(self, entry: TaskEntry, service: str) -> SessionState | None:
        """Where the memory stands; `None` where it is the task's own."""
        return entry.session if self.modes.get(service) == "session" else None

    @staticmethod
    def _kept(session: SessionState, service: str) -> Kept | None:
        cell = session.memories.get(MEMORY_KEY + service)
        return _kept(cell.encoded) if cell is not None and cell.encoded is not None else None

    @staticmethod
    def _write(session: SessionState, transition: Transition, service: str, kept: Kept) -> None:
        key = MEMORY_KEY + service
        nothing = bytes(kept.memory) == EMPTY and kept.turn is None
        encoded = None if nothing else _encode(kept)
        version = session.version(key)
        transition.shared = [*transition.shared, SharedWrite(session.session_id, key, version, encoded)]
        session.put(key, encoded, version + 1, committed=False)


def _wants(entry: TaskEntry | None, step_id: str) -> bool:
    """Whether a step still has its turn to end."""
    return entry is not None and step_id in entry.open


def memory_in(stored: bytes) -> bytes:
    """JSON of what a service remembers, from how it is stored."""
    return bytes(_kept(stored).memory)
