"""State as a policy sees it: copies, never the cache; and what a policy changed, as a delta.

The keys `<task_id>`, `result_<task_id>` and `stream_<task_id>` belong to their task. Every other key belongs to the
session: it has a version of its own, and a commit checks it. A task without a session shares with nobody, so all of
its keys are its own and need no guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, Self

import msgspec
from pydantic import BaseModel

from llama_deploy.control_plane.own_state import OwnState
from llama_deploy.errors import OrchestratorError
from llama_deploy.orchestrators import get_result_key, get_stream_key
from llama_deploy.types.reserved import MEMORY_KEY

_MISSING: Any = object()

UNSEEN = -1
"""In the place of the version of a key that a decision read or returned without having seen its newest value."""


def _convert(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"a value of type {type(value).__qualname__} has no JSON form")


_encoder = msgspec.json.Encoder(enc_hook=_convert)
_decode = msgspec.json.Decoder().decode


def encode_policy_value(value: Any, where: str) -> bytes:
    """JSON of a value that a policy put into state or a message; raises `OrchestratorError` that says where."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OrchestratorError(
            f"the orchestrator put a value that cannot be recorded into {where}",
            why=str(error),
            fix="keep JSON types or pydantic models in state and messages",
        ) from error


class SharedCell:
    """One shared key in memory: its value as JSON, its version, how far that is committed, and when it changed."""

    __slots__ = ("changed_at", "committed", "encoded", "version")

    def __init__(self, encoded: bytes | None, version: int, committed: int, changed_at: int) -> None:
        self.encoded = encoded
        self.version = version
        self.committed = committed
        self.changed_at = changed_at
        """The session's count of changes after this one."""


class SessionState:
    """The shared state of one session in memory, ahead of the store by what is being committed."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.cells: dict[str, SharedCell] = {}
        self.values: dict[str, Any] = {}
        """The decoded values of the cells that are not removed. Nobody outside may change them."""
        self.memories: dict[str, SharedCell] = {}
        """What services remember, by key; policies have no part in it."""
        self.turns: dict[str, str] = {}
        """The keys of those that a parked step goes on from, by that step."""
        self.changes = 0
        """How often any key was changed in memory."""
        self.lock = asyncio.Lock()
        """Held while a decision is made that met too many conflicts; others wait meanwhile."""
        self.unfinished = 0
        self.pending = 0
        """Changes that are on their way to the store."""
        self.stale = False
        """A change was refused: this is not what the store says, and must not be used any more."""
        self._settled = asyncio.Event()
        self._settled.set()
        self.recorded = False
        """Whether the session's row is known to be in the store."""

    def put(self, key: str, encoded: bytes | None, version: int, *, committed: bool) -> None:
        """Take over one key as read from the store, or as decided and on its way there."""
        before = self.cells.get(key) or self.memories.get(key)
        done = version if committed else (before.committed if before else 0)
        if key.startswith(MEMORY_KEY):
            self._put_memory(key, SharedCell(encoded, version, done, self.changes))
            return
        self.changes += 1
        self.cells[key] = SharedCell(encoded, version, done, self.changes)
        if encoded is None:
            self.values.pop(key, None)
        else:
            self.values[key] = _decode(encoded)

    def _put_memory(self, key: str, cell: SharedCell) -> None:
        self.memories[key] = cell
        for step_id in [step_id for step_id, known in self.turns.items() if known == key]:
            del self.turns[step_id]
        if cell.encoded is not None and isinstance(step_id := _decode(cell.encoded).get("turn"), str):
            self.turns[step_id] = key

    def committed(self, key: str, version: int) -> None:
        """This version of a key is in the store."""
        cell = self.cells.get(key)
        if cell is not None:
            cell.committed = max(cell.committed, version)

    def changing(self) -> None:
        """A change is handed to the store."""
        self.pending += 1
        self._settled.clear()

    def changed(self) -> None:
        """A change is committed, or refused."""
        self.pending -= 1
        if self.pending == 0:
            self._settled.set()

    async def settled(self) -> None:
        """Wait until nothing is on its way to the store any more."""
        await self._settled.wait()

    def version(self, key: str) -> int:
        """The key's newest version, 0 for a key that never was."""
        cell = self.cells.get(key) or self.memories.get(key)
        return cell.version if cell else 0


class PolicyState(dict[str, Any]):
    """The dictionary that a policy gets where a session shares state: it notes what is read and what is touched.

    Values of shared keys are copied when they are first looked at. `reads` are the shared keys (absent ones too) that
    the decision may depend on; `touched` those that may have been changed.
    """

    __slots__ = ("_foreign", "_session", "reads", "seen", "touched")

    def __init__(self, session: SessionState, mine: Mapping[str, Any]) -> None:
        super().__init__(session.values)
        super().update(mine)
        self._session = session
        self._foreign = True
        self.seen = session.changes
        """The session's count of changes then: what has a higher one, this policy has not seen."""
        self.reads: dict[str, int] = {}
        self.touched: dict[str, None] = {}

    def _look(self, key: str) -> None:
        """Note a read of `key`, and replace a shared mutable value by a copy of the policy's own."""
        if key in self.touched or key in self.reads:
            return
        cell = self._session.cells.get(key)
        if cell is None:
            if not super().__contains__(key):
                self.reads[key] = 0
            return
        self.reads[key] = cell.version if cell.changed_at <= self.seen else UNSEEN
        if cell.encoded is not None and isinstance(super().get(key), dict | list):
            super().__setitem__(key, _decode(cell.encoded))
            self.touched[key] = None

    def _look_at_all(self) -> None:
        if self._foreign:
            self._foreign = False
            for key in self._session.cells:
                self._look(key)

    def __getitem__(self, key: str) -> Any:
        self._look(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._look(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str):
            self._look(key)
        return super().__contains__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.touched[key] = None
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._look(key)
        self.touched[key] = None
        super().__delitem__(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        self._look(key)
        self.touched[key] = None
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        self._look_at_all()
        key, value = super().popitem()
        self.touched[key] = None
        return key, value

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def clear(self) -> None:
        self.touched.update(dict.fromkeys(self))
        super().clear()

    def copy(self) -> dict[str, Any]:
        self._look_at_all()
        return dict(super().items())

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]
        self.update(other)
        return self

    def __copy__(self) -> dict[str, Any]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return deepcopy(self.copy(), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (self.copy(),)

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return {**self.copy(), **other}

    def __iter__(self) -> Iterator[str]:
        self._look_at_all()
        return super().__iter__()

    def keys(self) -> Any:
        self._look_at_all()
        return super().keys()

    def items(self) -> Any:
        self._look_at_all()
        return super().items()

    def values(self) -> Any:
        self._look_at_all()
        return super().values()

    def __eq__(self, other: object) -> bool:
        return self.copy() == other

    __hash__ = None


class Delta:
    """What one decision changed: encoded values by key, `None` for removed ones."""

    __slots__ = ("keys", "own", "own_present", "reads", "shared")

    def __init__(self) -> None:
        self.own: dict[str, bytes | None] = {}
        self.own_present = False
        self.keys: dict[str, bytes | None] = {}
        self.shared: dict[str, bytes | None] = {}
        self.reads: dict[str, int] = {}


class PrivateState:
    """The part of state that belongs to one task, as JSON by key; what its history rebuilds."""

    __slots__ = ("_growing", "keys", "memory", "names", "own", "task_id")

    def __init__(self, task_id: str) -> None:
        self._growing: dict[str, bytearray] = {}
        """Values that grow while a history is read: in place, else each item would cost all before it."""
        self.task_id = task_id
        self.own: dict[str, bytes] | None = None
        """The keys inside `state[task_id]`, or `None` while there is no such dictionary."""
        self.keys: dict[str, bytes] = {}
        self.names = (get_result_key(task_id), get_stream_key(task_id))
        self.memory: dict[str, tuple[bytes, int]] = {}
        """What services remember of the task, with its version; policies have no part in it."""

    def keep(self, service: str, memory: bytes) -> None:
        """Take over what a service remembers from now on."""
        self.memory[service] = (memory, self.memory.get(service, (b"", 0))[1] + 1)

    def apply(self, delta: Delta) -> None:
        """Take over a decision."""
        for key in (self._growing.keys() & delta.own.keys()) if delta.own_present else list(self._growing):
            del self._growing[key]  # it is another value now
        if delta.own_present:
            self.own = self.own if self.own is not None else {}
            if delta.own:
                _apply(self.own, delta.own)
        else:
            self.own = None
        if delta.keys:
            _apply(self.keys, delta.keys)

    def grow(self, key: str, end: bytes) -> None:
        """Add the items of one JSON list or object to the end of what stands under a key; `settle` comes after it.

        Raises `ValueError` where nothing of the kind stands there.
        """
        growing = self._growing.get(key)
        if growing is None:
            growing = self._growing[key] = bytearray((self.own or {}).get(key, b""))
        if growing[:1] != end[:1] or end[:1] not in (b"[", b"{"):
            raise ValueError(f"nothing that can have grown stands under {key!r}")
        growing[-1:] = b"," + end[1:]

    def settle(self) -> None:
        """A history was read: what has grown in it stands among the other values."""
        if self.own is not None:
            self.own.update({key: bytes(value) for key, value in self._growing.items()})
        self._growing.clear()

    def view(self, session: SessionState | None, *, on_demand: bool = False) -> dict[str, Any]:
        """The state for a policy: private copies, and the session's shared keys where there is one.

        `on_demand` makes `state[task_id]` an `OwnState`.
        """
        mine: dict[str, Any] = {key: _decode(value) for key, value in self.keys.items()} if self.keys else {}
        if self.own is not None and on_demand:
            mine[self.task_id] = OwnState(self.own)
        elif self.own is not None:
            mine[self.task_id] = {key: _decode(value) for key, value in self.own.items()} if self.own else {}
        return mine if session is None else PolicyState(session, mine)

    def difference(
        self, session: SessionState | None, given: dict[str, Any], returned: Any, known: tuple[Any, bytes] | None
    ) -> Delta:
        """What the returned state changes against the one that was `given`.

        `known` is an object whose JSON is already known (the result that was folded), so that it is encoded once.
        Raises `OrchestratorError` when the policy returned no dictionary or something without a JSON form.
        """
        if not isinstance(returned, Mapping):
            raise OrchestratorError(f"the orchestrator returned a state of type {type(returned).__name__}, not a dict")
        delta = Delta()
        same = returned is given
        shared_names: Iterable[str] | None = None
        if isinstance(given, PolicyState):
            assert session is not None
            delta.reads = given.reads
            shared_names = given.touched if same else {**dict.fromkeys(dict.keys(given)), **given.touched, **returned}
        plain = dict.items(returned) if isinstance(returned, dict) else returned.items()
        found: dict[str, Any] = dict(plain)
        own = found.pop(self.task_id, _MISSING)
        if isinstance(own, OwnState):
            delta.own_present = True
            delta.own = own.changes(partial(_encode_own, f"state[{self.task_id!r}]", known))
        elif isinstance(own, dict):
            delta.own_present = True
            if own or self.own:
                _compare(self.own or {}, own, f"state[{self.task_id!r}]", known, delta.own)
        elif own is not _MISSING:
            found[self.task_id] = own
        if shared_names is None:
            if found or self.keys:
                _compare(self.keys, found, "state", known, delta.keys)
            return delta
        private = {key: found[key] for key in (*self.names, self.task_id) if key in found}
        _compare(self.keys, private, "state", known, delta.keys)
        assert session is not None
        assert isinstance(given, PolicyState)
        for key in shared_names:
            if key in private or key == self.task_id or key in self.names:
                continue
            cell = session.cells.get(key)
            if cell is not None and cell.changed_at > given.seen:
                delta.reads[key] = UNSEEN
            self._compare_shared(cell, key, found.get(key, _MISSING), delta)
        return delta

    @staticmethod
    def _compare_shared(cell: SharedCell | None, key: str, value: Any, delta: Delta) -> None:
        before = cell.encoded if cell else None
        if value is _MISSING:
            if before is not None:
                delta.shared[key] = None
            return
        _check_key(key, "state")
        encoded = encode_policy_value(value, f"state[{key!r}]")
        if encoded != before:
            delta.shared[key] = encoded


def _check_key(key: Any, where: str) -> None:
    if not isinstance(key, str):
        raise OrchestratorError(f"the key {key!r} of {where} is not text")
    if key.startswith(MEMORY_KEY):
        raise OrchestratorError(f"the key {key!r} of {where} is taken", why="it is for what services remember")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise OrchestratorError(f"the key {key!r} of {where} is not valid text", why=str(error)) from error


def _apply(target: dict[str, bytes], changes: dict[str, bytes | None]) -> None:
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value


def _encode_own(where: str, known: tuple[Any, bytes] | None, key: Any, value: Any) -> bytes:
    """One value of a task's own state as JSON; what is known already is not encoded again."""
    _check_key(key, where)
    if known is not None and value is known[0]:
        return known[1]
    return encode_policy_value(value, f"{where}[{key!r}]")


def _compare(
    before: dict[str, bytes],
    after: dict[str, Any],
    where: str,
    known: tuple[Any, bytes] | None,
    changes: dict[str, bytes | None],
) -> None:
    """Put what differs between the encoded `before` and the values `after` into `changes`."""
    for key, value in after.items():
        encoded = _encode_own(where, known, key, value)
        if before.get(key) != encoded:
            changes[key] = encoded
    for key in before:
        if key not in after:
            changes[key] = None
