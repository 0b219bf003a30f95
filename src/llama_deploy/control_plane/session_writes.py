"""Changes of a session's shared state that come from outside of any task.

They are guarded like those of a decision: each key by its version, so that no change of a task is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.refusals import resolve, too_large
from llama_deploy.control_plane.session_state import SessionState, encode_policy_value
from llama_deploy.errors import CommitConflictError, InvalidRequestError, LlamaDeployError
from llama_deploy.state_stores.base import SharedWrite, Transition
from llama_deploy.types.reserved import MEMORY_KEY

CONFLICTS_MAX = 5
"""A write is given up after so many refused commits."""


async def write_state(engine: Engine, session_id: str, values: Mapping[str, Any]) -> None:
    """Put values under keys of a session's state. When this returns, they are recorded, all of them.

    Tasks that decide meanwhile decide again where they looked at one of the keys. Raises `InvalidRequestError` for a
    key that is the control plane's own, `LimitExceededError` for a value that is too large.
    """
    if any(key.startswith(MEMORY_KEY) for key in values):
        raise InvalidRequestError(f"keys that begin with {MEMORY_KEY!r} are not of the state that tasks share")
    encoded = {key: encode_policy_value(value, f"state[{key!r}]") for key, value in values.items()}
    for key, value in encoded.items():
        if len(value) > engine.settings.payload_bytes_max:
            raise too_large(f"value of {key!r} in the state", len(value), engine.settings.payload_bytes_max)
    for attempt in range(1, CONFLICTS_MAX + 1):
        try:
            await _write(engine, await engine.cache.load_session(session_id), encoded)
        except CommitConflictError:
            if attempt == CONFLICTS_MAX:
                raise
        else:
            return


async def _write(engine: Engine, session: SessionState, encoded: Mapping[str, bytes]) -> None:
    writes = []
    for key, value in encoded.items():
        version = session.version(key)
        writes.append(SharedWrite(session.session_id, key, version, value))
        session.put(key, value, version + 1, committed=False)
    if not writes:
        return
    session.changing()
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    tell = partial(resolve, future)

    def settled(refusal: LlamaDeployError | None) -> None:
        session.changed()
        if refusal is not None:
            engine.cache.forget_session(session)
        else:
            for write in writes:
                session.committed(write.key, write.expected_version + 1)
        tell(refusal)

    engine.store.record(Transition(settled=settled, shard_key=session.session_id, shared=writes))
    await future
