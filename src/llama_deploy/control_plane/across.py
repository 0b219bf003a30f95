"""One answer over all control planes of a store: the one that is asked asks each of the others once, at the same time.

What each knows alone (instances, what waits, counts since its start) is put together by `joined`. Nobody is left out
in silence: one that does not answer in time is named. A control plane that has its store to itself asks nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from llama_deploy.control_plane.joined import (
    joined_instance,
    joined_service,
    joined_services,
    joined_status,
    joined_waiting,
    rank_before,
)
from llama_deploy.control_plane.leadership import Member
from llama_deploy.control_plane.peers import FRESH
from llama_deploy.control_plane.queue_views import queue_of
from llama_deploy.control_plane.relays import refused_by, untrusted
from llama_deploy.errors import (
    Category,
    InvalidRequestError,
    LlamaDeployError,
    PlaneNotAnsweringError,
    ServiceNotFoundError,
    TLSError,
)
from llama_deploy.types import (
    InstanceView,
    MissingPlane,
    QueuePage,
    QueueView,
    ServicePage,
    ServiceView,
    TaskPage,
    TaskView,
    WaitingPage,
)

if TYPE_CHECKING:
    from llama_deploy.control_plane.plane import ControlPlane

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """Who is to answer, and on whose behalf."""

    which: str | None = None
    """The one control plane that is asked, by name or URL; all of them where none is named."""
    passed_on: bool = False
    """Whether another control plane asks, for its part of an answer about all."""
    credentials: Mapping[str, str] = field(default_factory=dict)
    """The headers that show the credentials of whoever asks; without any, control planes show their own."""
    fresh: bool = False
    """Whether each first reads what they have in common, so that what was changed before counts in its answer."""


@dataclass
class Parts(Generic[T]):
    """What the control planes that were asked have said, each under its name, and who has not."""

    found: list[tuple[str, T]] = field(default_factory=list)
    refusals: list[LlamaDeployError] = field(default_factory=list)
    missing: list[MissingPlane] = field(default_factory=list)

    def checked(self) -> Parts[T]:
        """These, where anybody knows anything. Raises what they refuse with."""
        if not self.found:
            raise self.refusals[0]
        return self


class Across:
    """Asks all control planes of a store on behalf of one."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._leadership = plane.leadership
        self._views = plane.views

    # --- services and queues ----------------------------------------------------------------------------------------

    async def services(self, by: Inquiry) -> ServicePage:
        """Every known service with its instances, and what waits for it. Raises as `_gather` does."""
        parts = await self._gather(
            by, self._views.services, "/v1/services", lambda answer: ServicePage.model_validate(answer).items
        )
        parts.checked()
        if not self._leadership.shared or by.passed_on:
            return ServicePage(items=parts.found[0][1])
        return ServicePage(items=joined_services(parts.found, parts.missing), missing=parts.missing)

    async def service(self, by: Inquiry, name: str) -> ServiceView:
        """One service. Raises `ServiceNotFoundError` where nobody who answers knows it, and as `_gather` does."""
        path = f"/v1/services/{quote(name, safe='')}"
        parts = await self._gather(by, lambda: self._views.service(name), path, ServiceView.model_validate)
        parts.checked()
        if not self._leadership.shared or by.passed_on:
            return parts.found[0][1]
        return joined_service(parts.found, parts.missing)

    async def queues(self, by: Inquiry) -> QueuePage:
        """What waits for each known service."""
        page = await self.services(by)
        return QueuePage(items=[queue_of(view) for view in page.items], missing=page.missing)

    async def queue(self, by: Inquiry, name: str) -> QueueView:
        """What waits for one service. Raises as `service` does."""
        return queue_of(await self.service(by, name))

    async def waiting(self, by: Inquiry, name: str, *, after: int, limit: int) -> WaitingPage:
        """What waits for a service, in the order in which it would go: those who are next at each of them come first.

        It costs each of the others one request, and one more for every page after the first. Raises as `service`.
        """
        if not self._leadership.shared or by.passed_on:
            return (await self._waiting(by, name, after, limit)).found[0][1]
        before = skipped = 0
        if after:
            counts = [page.total for _, page in (await self._waiting(by, name, 0, 1)).found]
            before = rank_before(counts, after)
            skipped = sum(min(count, before) for count in counts)
        parts = await self._waiting(by, name, before, limit)
        page = joined_waiting(parts.found, after=after, skip=after - skipped, limit=limit)
        page.missing = parts.missing
        return page

    async def _waiting(self, by: Inquiry, name: str, after: int, limit: int) -> Parts[WaitingPage]:
        parts = await self._gather(
            by,
            lambda: self._views.waiting(name, first=after, limit=limit),
            f"/v1/queues/{quote(name, safe='')}/waiting",
            WaitingPage.model_validate,
            params={"after": after, "limit": limit},
        )
        return parts.checked()

    async def drain(self, by: Inquiry, service: str, instance_id: str, *, timeout_s: float | None) -> InstanceView:
        """Have an instance leave, by all to whom it is connected: it takes nothing more of any control plane.

        Raises `ServiceNotFoundError` where it is connected to none, `PlaneNotAnsweringError` where it might be to one
        that does not answer, and `InvalidRequestError` for one that could not come back.
        """
        gateway = self._plane.gateway
        parts = await self._gather(
            by,
            lambda: gateway.drain_instance(service, instance_id, timeout_s=timeout_s),
            f"/v1/services/{quote(service, safe='')}/instances/{quote(instance_id, safe='')}/drain",
            InstanceView.model_validate,
            method="POST",
            body={} if timeout_s is None else {"timeout_s": timeout_s},
        )
        refusal = next((error for error in parts.refusals if not isinstance(error, ServiceNotFoundError)), None)
        if refusal is not None:
            raise refusal
        if not parts.found and parts.missing:
            raise _not_answering(parts.missing[0])
        parts.checked()
        if not self._leadership.shared or by.passed_on:
            return parts.found[0][1]
        return joined_instance(parts.found)

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def lookup(self, by: Inquiry, task_ids: Sequence[str]) -> TaskPage:
        """Where tasks stand, in this order; those that there are not are left out."""
        page = TaskPage(items=await self._views.tasks_of(task_ids))
        page.missing = await self.complete(by, page.items)
        return page

    async def complete(self, by: Inquiry, views: list[TaskView]) -> list[MissingPlane]:
        """Have those who lead unfinished tasks say what they wait for; returns who did not.

        One request goes to each that leads any of them.
        """
        if not self._leadership.shared or by.passed_on:
            return []
        theirs: dict[str, tuple[Member, list[int]]] = {}
        for place, view in enumerate(views):
            leader = None if view.ended_at is not None else self._plane.routing.leader(view.session_id)
            if leader is not None:
                theirs.setdefault(leader.member.owner, (leader.member, []))[1].append(place)

        async def ask(member: Member, places: list[int]) -> list[TaskView]:
            body = {"task_ids": [views[place].task_id for place in places]}
            answer = await self._ask(member, by, "POST", "/v1/tasks/lookup", body=body)
            return TaskPage.model_validate(answer).items

        asked = await asyncio.gather(*(ask(*one) for one in theirs.values()), return_exceptions=True)
        missing: list[MissingPlane] = []
        for (member, places), found in zip(theirs.values(), asked, strict=True):
            if isinstance(found, LlamaDeployError):
                missing.append(_missing(member, found))
            elif isinstance(found, BaseException):
                raise found
            else:
                known = {view.task_id: view for view in found}
                for place in places:
                    views[place] = known.get(views[place].task_id, views[place])
        return missing

    # --- status -----------------------------------------------------------------------------------------------------

    async def status(self, by: Inquiry) -> dict[str, Any]:
        """What the control planes are doing, in numbers: counts are of all, what is of one stands under its name."""
        parts = await self._gather(by, self._plane.status, "/v1/status", _as_dict)
        parts.checked()
        if not self._leadership.shared or by.passed_on:
            return parts.found[0][1]
        return joined_status(parts.found, parts.missing)

    # --- asking -----------------------------------------------------------------------------------------------------

    async def _gather(
        self,
        by: Inquiry,
        here: Callable[[], T | Awaitable[T]],
        path: str,
        there: Callable[[Any], T],
        *,
        method: str = "GET",
        body: Any = None,
        params: Mapping[str, Any] | None = None,
    ) -> Parts[T]:
        """What each that is asked says: `here` about this control plane, `there` makes it of another one's answer.

        The part of this one comes first. Raises `InvalidRequestError` for a control plane that there is not,
        `PlaneNotAnsweringError` where the one that alone is asked does not answer.
        """
        asks_here, others = self._asked(by)
        parts: Parts[T] = Parts()

        async def other(member: Member) -> T:
            return there(await self._ask(member, by, method, path, body=body, params=params))

        work: list[tuple[Member | None, Awaitable[T]]] = [(member, other(member)) for member in others]
        if asks_here:
            work.insert(0, (None, self._here(by, here)))
        answers = await asyncio.gather(*(one for _, one in work), return_exceptions=True)
        for (member, _), found in zip(work, answers, strict=True):
            name = self._leadership.name if member is None else member.name
            if not isinstance(found, BaseException):
                parts.found.append((name, found))
            elif not isinstance(found, LlamaDeployError):
                raise found
            elif member is None or found.category in _REFUSALS:
                parts.refusals.append(found)
            else:
                parts.missing.append(_missing(member, found))
        if parts.missing and not asks_here:
            raise _not_answering(parts.missing[0])
        return parts

    async def _here(self, by: Inquiry, here: Callable[[], T | Awaitable[T]]) -> T:
        if by.passed_on and by.fresh:
            await self._plane.engine.common.read()
        found = here()
        return await found if isinstance(found, Awaitable) else found

    def _asked(self, by: Inquiry) -> tuple[bool, list[Member]]:
        """Whether this control plane is asked, and which others are."""
        leadership = self._leadership
        me = (leadership.owner, leadership.name, leadership.url)
        others = [one for one in leadership.members() if one.owner != leadership.owner] if leadership.shared else []
        if by.which is None:
            return True, [] if by.passed_on else others
        if by.which in me and by.which:
            return True, []
        chosen = [one for one in others if by.which in (one.owner, one.name, one.url)]
        if by.passed_on or not chosen:
            known = [leadership.name, *(one.name for one in others)]
            raise InvalidRequestError(
                f"there is no control plane {by.which!r}",
                why=f"{leadership.name} answers" if by.passed_on else f"known: {', '.join(known)}",
                fix="llamactl status   shows their names",
                known=known,
            )
        return False, chosen[:1]

    async def _ask(
        self,
        member: Member,
        by: Inquiry,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
    ) -> Any:
        """The part of another control plane. Raises what it refuses with, `PlaneNotAnsweringError`."""
        if not member.url:
            raise PlaneNotAnsweringError(f"the control plane {member.name} does not say where it is reached")
        try:
            return await self._plane.peers.ask(
                member.url,
                method,
                path,
                body=body,
                params={**(params or {}), "control_plane": member.owner},
                credentials=by.credentials,
                headers={FRESH: "1"} if by.fresh else None,
                timeout_s=self._plane.engine.settings.peer_answer_s,
            )
        except TLSError as error:
            raise untrusted(member.url, error) from error
        except LlamaDeployError as error:
            raise refused_by(member, error) from error


_REFUSALS = frozenset({Category.NOT_FOUND, Category.INVALID, Category.CONFLICT})
"""What another control plane refuses with because of what it was asked; all else says that there is no answer of it."""


def _missing(member: Member, error: LlamaDeployError) -> MissingPlane:
    return MissingPlane(name=member.name, url=member.url, why=error.why or error.what)


def _not_answering(one: MissingPlane) -> PlaneNotAnsweringError:
    return PlaneNotAnsweringError(
        f"the control plane {one.name} does not answer{f' at {one.url}' if one.url else ''}",
        why=one.why,
        fix="ask again in a moment, or ask the others: leave control_plane out",
    )


def _as_dict(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise PlaneNotAnsweringError("a control plane answers with something else than its status")
    return answer
