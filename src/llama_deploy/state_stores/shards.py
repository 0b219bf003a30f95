"""Shards: which part of the sessions a control plane leads, under a lease and an epoch.

A session belongs to one shard for ever: a stable hash of its id, modulo a number that is fixed when the store is made.
A store for one control plane has one shard, which whoever opened it holds. What a claim, a takeover and a commit do
to each other is said in `base`.
"""

from __future__ import annotations

from itertools import count
from zlib import crc32

from llama_deploy.state_stores.rows import Transition

SHARDS = 64
"""Into how many shards a store that several control planes may share is divided when it is made."""


def shard_of(session_id: str, shards: int) -> int:
    """The shard of a session, and of the task without a session that has this id: CRC-32 of the UTF-8 text."""
    return crc32(session_id.encode("utf-8", "surrogatepass")) % shards


def id_beside(made: str, session_id: str, shards: int) -> str:
    """An id of hexadecimal digits, changed in the last ones so that a task of that id is in the shard of a session.

    What belongs together without being of one session is led by one control plane so, and moves with it. The same
    arguments give the same id; where there is one shard it is `made` itself.
    """
    wanted = shard_of(session_id, shards)
    head, tail = made[:-_CHANGED_DIGITS], int(made[-_CHANGED_DIGITS:], 16)
    return next(
        beside
        for number in count(tail)
        if shard_of(beside := f"{head}{number % 16**_CHANGED_DIGITS:0{_CHANGED_DIGITS}x}", shards) == wanted
    )


_CHANGED_DIGITS = 6
"""How many digits at the end of an id may be changed: for as many shards as anybody has, far more than are needed."""


def shard_of_transition(transition: Transition, shards: int) -> int | None:
    """The shard that a transition belongs to, `None` when nothing in it says."""
    if transition.task is not None:
        return shard_of(transition.task.session_id, shards)
    if transition.shard_key:
        return shard_of(transition.shard_key, shards)
    if transition.session is not None:
        return shard_of(transition.session.session_id, shards)
    return None
