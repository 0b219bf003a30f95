"""What clients ask on their connections about tasks that another control plane leads: asked there, and handed back.

All of it shares one connection to each control plane. When that is lost, or the task's shard moves, what is open is
asked again of whoever leads then: a submission under its task id, a stream from its next number. Where that turns out
to be this control plane itself, the caller is told, and goes on by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

from llama_deploy.control_plane.leadership import Member
from llama_deploy.control_plane.peers import Peers
from llama_deploy.control_plane.routing import Routing, Search
from llama_deploy.errors import (
    CannotReachError,
    Category,
    ConnectionLostError,
    LlamaDeployError,
    PeerRefusedError,
    ShardLostError,
    ShuttingDownError,
    StoreUnavailableError,
    TLSError,
)
from llama_deploy.messages.frames import Accepted, Ended
from llama_deploy.runtime import failpoint

PATIENCE_S = 60.0
"""How long a client's operation waits for a leader; as long as clients themselves try to connect by default."""

MOVED = (CannotReachError, ConnectionLostError, ShardLostError, ShuttingDownError)
"""What says that somebody else is to be asked."""

Give = Callable[[int, list[bytes]], Awaitable[None]]
"""Takes items in order, with the number of the first; returns when there is room for more."""


class Relays:
    """Asks other control planes for the clients of this one."""

    def __init__(self, routing: Routing, peers: Peers) -> None:
        self._routing = routing
        self._peers = peers
        routing.watch(self._look)
        self.passed_on = 0
        """Operations that another control plane was asked for, repetitions included."""

    def _look(self) -> None:
        """Who is not among the living any more is not waited for, whatever its connection says."""
        self._peers.keep_only(self._routing.living())

    async def call(
        self,
        session_id: str,
        task_id: str,
        definition: bytes | None,
        *,
        wait: bool,
        accepted: Callable[[str], None] = lambda _: None,
        session_of_new: Callable[[], Awaitable[str]] | None = None,
    ) -> Accepted | Ended | None:
        """Have a task submitted, or its end waited for, or both. `None`: this control plane leads the session now.

        `accepted` is told the task's id once, when it is recorded; what is asked from then on is its end.
        `session_of_new` says which session a new task is of by now: under its key another one may have been made since.
        Raises what the leader refuses with, and `NoLeaderError`.
        """
        recorded = definition is None

        def told(its_id: str) -> None:
            nonlocal task_id, definition, recorded
            task_id, definition = its_id, None
            if not recorded:
                recorded = True
                accepted(its_id)

        search = Search(self._routing, session_id, patience_s=PATIENCE_S)
        while True:
            leader = await search.next()
            if leader is None:
                return None
            self.passed_on += 1
            try:
                connection = self._peers.connection(leader.member)
                failpoint("relays.before_call")
                reply = await connection.call(task_id, definition, wait=wait, accepted=told)
            except TLSError as error:
                raise untrusted(leader.member.url, error) from error
            except MOVED:
                if recorded and not wait:
                    return Accepted(0, task_id)
                find = partial(self._routing.session_of, task_id) if recorded else session_of_new
                await self._look_again(search, find)
            except LlamaDeployError as error:
                raise refused_by(leader.member, error) from error
            else:
                failpoint("relays.after_call")
                return reply

    @staticmethod
    async def _look_again(search: Search, find: Callable[[], Awaitable[str | None]] | None) -> None:
        """Whoever was asked does not lead what is asked about, which may be of another session than was thought."""
        if find is not None:
            with contextlib.suppress(StoreUnavailableError):  # what was thought before is as good as any other
                search.session_id = await find() or search.session_id

    async def read(
        self, session_id: str, task_id: str, kind: Literal["stream", "history"], first: int, give: Give
    ) -> int | None:
        """Hand a task's stream or history on to `give`, from number `first` to its end.

        Returns `None` at the end; or the number to go on from, where this control plane leads the session now. Raises
        as `call` does.
        """
        search = Search(self._routing, session_id, patience_s=PATIENCE_S)
        while True:
            leader = await search.next()
            if leader is None:
                return first
            self.passed_on += 1
            connection = self._peers.connection(leader.member)
            reading = connection.read(task_id, kind=kind, first=first)
            try:
                async for number, items in reading.batches(connection.resume):
                    failpoint("relays.before_give")
                    await give(number, items)
                    first = number + len(items)
            except TLSError as error:
                raise untrusted(leader.member.url, error) from error
            except MOVED:
                continue
            except LlamaDeployError as error:
                raise refused_by(leader.member, error) from error
            else:
                return None
            finally:
                connection.forget(reading)


def untrusted(url: str, error: TLSError) -> PeerRefusedError:
    """That there is no trusted way to another control plane; waiting for it is of no use."""
    return PeerRefusedError(
        f"this control plane has no trusted connection to the one at {url}",
        why=error.why,
        fix="have LLAMA_DEPLOY_CA_FILE in the environment of every control plane, and where certificates are\n"
        "asked for LLAMA_DEPLOY_CLIENT_CERTIFICATE_FILE and LLAMA_DEPLOY_CLIENT_KEY_FILE",
    )


def refused_by(member: Member, error: LlamaDeployError) -> LlamaDeployError:
    """What a refusal by another control plane means here: what it says, unless it is about this one's own token."""
    if error.category not in (Category.UNAUTHORISED, Category.FORBIDDEN):
        return error
    return PeerRefusedError(
        f"the control plane at {member.url} does not let this one in",
        why=str(error),
        fix="have LLAMA_DEPLOY_TOKEN in the environment of every control plane: a token of the scope admin",
    )
