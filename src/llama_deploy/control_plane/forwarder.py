"""What a control plane itself wants done about a session that another one leads: submitted, canceled, deleted there.

Everything here may be asked twice: a task is submitted under its id, and what is done to one is harmless to repeat. So
it is asked again of whoever leads then, until it is known to be done, or has been refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from llama_deploy.control_plane.leadership import Leader, Member
from llama_deploy.control_plane.peers import Peers
from llama_deploy.control_plane.relays import PATIENCE_S, Relays, refused_by, untrusted
from llama_deploy.control_plane.routing import AGAIN_S, Routing, Search, no_leader, same
from llama_deploy.errors import LlamaDeployError, PlaneNotAnsweringError, ShardLostError, TaskNotFoundError, TLSError
from llama_deploy.messages.frames import Accepted
from llama_deploy.types import TaskDefinition

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine
    from llama_deploy.control_plane.signals import Signals

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Many(Generic[T, R]):
    """Something that is to be done about many, each by whoever leads it; doing it twice does no harm."""

    items: Sequence[T]
    session_of: Callable[[T], str]
    here: Callable[[list[T]], Awaitable[Sequence[R]]]
    """Does it to those that are led here; what became of each."""
    path: str
    body: Callable[[list[T]], Any]
    """What another control plane is sent, by POST to `path`, to do it to these."""
    there: Callable[[list[T], Any], Sequence[R]]
    """What became of each, by its answer."""
    failed: Callable[[T, LlamaDeployError], R]
    """What becomes of one that nobody could be asked about."""
    is_elsewhere: Callable[[R], bool]
    """Whether it was not done because another control plane leads it."""


class Forwarder:
    """Asks whoever leads a session on behalf of one engine; that engine itself, where it leads it."""

    def __init__(self, engine: Engine, routing: Routing, peers: Peers) -> None:
        self.shared = routing.shared
        """Whether there may be other control planes at all."""
        self._engine = engine
        self._routing = routing
        self._peers = peers
        self.relays = Relays(routing, peers)
        """Asks what takes time, over the connections that clients' operations share."""

    async def submit(self, definition: TaskDefinition) -> str:
        """Have a task recorded, and return its id; the same one, however often it is repeated.

        Raises what the task is refused with, and `NoLeaderError`: then nobody has recorded it, or it is not known, and
        repeating it is safe.
        """
        encoded = msgspec.json.encode(definition.dumped())
        session_of_new = partial(self._routing.session_of_new, definition)
        while True:
            session_id = await session_of_new()
            if self._routing.leads(session_id):
                try:
                    return (await self._engine.submissions.submit_and_wait(definition)).row.task_id
                except ShardLostError:
                    await self._routing.changed(AGAIN_S)
            reply = await self.relays.call(
                session_id, definition.task_id, encoded, wait=False, session_of_new=session_of_new
            )
            if isinstance(reply, Accepted):
                return reply.task_id

    async def session_of(self, task_id: str) -> str | None:
        """The session of a task, or what stands for one; `None` for a task that there is not."""
        return await self._routing.session_of(task_id)

    async def ended(self, task_id: str) -> None:
        """Wait until a task has ended, or is not kept any more. Raises `NoLeaderError`, `StoreUnavailableError`."""
        while (session_id := await self._routing.session_of(task_id)) is not None:
            if self._routing.leads(session_id):
                try:
                    await self._engine.wait_ended(await self._engine.cache.get(task_id), None)
                except ShardLostError:
                    await self._routing.changed(AGAIN_S)
                    continue
                except TaskNotFoundError:
                    pass
                return
            if await self.relays.call(session_id, task_id, None, wait=True) is not None:
                return

    async def cancel(self, signals: Signals, task_id: str, *, reason: str, by: str) -> None:
        """Have a task canceled, whoever leads it. Raises `TaskEndedError`, `TaskNotFoundError`, `NoLeaderError`."""

        async def here() -> None:
            await signals.cancel(task_id, reason=reason, by=by)

        await self.do(
            await self._routing.session_of(task_id) or task_id,
            here,
            method="POST",
            path=f"/v1/tasks/{quote(task_id, safe='')}/cancel",
            body={"reason": reason, "by": by},
            there=lambda _: None,
        )

    async def do(
        self,
        session_id: str,
        here: Callable[[], Awaitable[T]],
        *,
        method: str,
        path: str,
        body: Any = None,
        there: Callable[[Any], T],
    ) -> T:
        """Have something done to a task: by `here`, or by a request to whoever leads its session.

        `there` makes the result of that one's answer. Raises what either refuses with, and `NoLeaderError`.
        """
        if not self._routing.shared:
            return await here()
        search = Search(self._routing, session_id, patience_s=PATIENCE_S)
        while True:
            leader = await search.next()
            try:
                if leader is None:
                    return await here()
                return there(await self._ask(leader.member, method, path, body))
            except ShardLostError:
                if leader is None:
                    await self._routing.changed(AGAIN_S)

    async def _ask(self, member: Member, method: str, path: str, body: Any) -> Any:
        """One request. Raises what it is refused with, and `ShardLostError` where somebody else is to be asked."""
        try:
            return await self._peers.ask(member.url, method, path, body=body, timeout_s=PATIENCE_S)
        except PlaneNotAnsweringError as error:
            raise ShardLostError("the control plane that leads the session went away", why=error.why) from error
        except TLSError as error:
            raise untrusted(member.url, error) from error
        except LlamaDeployError as error:
            raise refused_by(member, error) from error

    # --- many at once -----------------------------------------------------------------------------------------------

    async def each(self, many: Many[T, R]) -> list[R]:
        """Have something done about each of many, by whoever leads it; what became of each, in their order.

        One request goes to each control plane that leads some, and what turns out to be led by another is asked again
        of that one. What cannot be asked of anybody is what becomes of that one. Raises what `here` raises.
        """
        results: dict[int, R] = {}
        vain: dict[int, Leader] = {}
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + PATIENCE_S
        while left := [number for number in range(len(many.items)) if number not in results]:
            groups: dict[str, tuple[Leader | None, list[int]]] = {}
            for number in left:
                session_id = many.session_of(many.items[number])
                leader = None if self._routing.leads(session_id) else self._routing.leader(session_id)
                if leader is not None and same(leader, vain.get(number)):
                    continue
                if leader is not None or self._routing.leads(session_id):
                    groups.setdefault(leader.member.owner if leader else "", (leader, []))[1].append(number)
            before = len(results)
            for found in await asyncio.gather(*(self._some(many, *group) for group in groups.values())):
                results |= found
            for leader, numbers in groups.values():
                vain |= {number: leader for number in numbers if leader is not None and number not in results}
            if len(results) > before:
                ends_at = loop.time() + PATIENCE_S
            elif loop.time() > ends_at:
                results |= {number: many.failed(many.items[number], no_leader()) for number in left}
            else:
                await self._routing.changed(AGAIN_S)
                vain.clear()
        return [results[number] for number in range(len(many.items))]

    async def _some(self, many: Many[T, R], leader: Leader | None, numbers: list[int]) -> dict[int, R]:
        """What becomes of those that one control plane leads; without those that another one is to be asked about."""
        items = [many.items[number] for number in numbers]
        found: Sequence[R]
        if leader is None:
            found = await many.here(items)
        else:
            try:
                found = many.there(items, await self._ask(leader.member, "POST", many.path, many.body(items)))
            except ShardLostError:
                return {}
            except LlamaDeployError as error:
                found = [many.failed(item, error) for item in items]
        return {n: result for n, result in zip(numbers, found, strict=True) if not many.is_elsewhere(result)}
