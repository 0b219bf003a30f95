"""The place of services that are put together by hand: entered and left in any order, several times and at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.support import DEADLINE_S

from llama_deploy.deploy.parts import places
from llama_deploy.deploy.parts.queues import SimpleMessageQueue
from llama_deploy.errors import CannotReachError, ForbiddenError

URL = "http://127.0.0.1:1"


class Serving:
    """One call of `serve_services`, of which the test says what comes of it."""

    def __init__(self, stop: asyncio.Event, ready: Callable[[], None] | None) -> None:
        self.stop = stop
        self.ready = ready
        self.ends: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def registered(self) -> None:
        assert self.ready is not None
        self.ready()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Serving]:
    """The calls so far, the latest last."""
    made: list[Serving] = []

    async def serve(
        services: Any, *, stop: asyncio.Event, on_ready: Callable[[], None] | None, **settings: Any
    ) -> None:
        del services, settings
        made.append(Serving(stop, on_ready))
        await made[-1].ends

    monkeypatch.setattr(places, "serve_services", serve)
    return made


@pytest.fixture
def place() -> places.Place:
    return places.Place([], SimpleMessageQueue())


async def turns() -> None:
    """Let everything that is due happen."""
    for _ in range(10):
        await asyncio.sleep(0)


async def entered(place: places.Place, begun: list[Serving]) -> Serving:
    entering = asyncio.ensure_future(place.enter(URL))
    await turns()
    assert not entering.done(), "it is not registered yet"
    begun[-1].registered()
    await asyncio.wait_for(entering, DEADLINE_S)
    return begun[-1]


async def test_what_could_not_be_entered_at_first_stays_once_it_is(place: places.Place, begun: list[Serving]) -> None:
    entering = asyncio.ensure_future(place.enter(URL))
    await turns()
    begun[-1].ends.set_exception(CannotReachError("nobody is there yet"))
    with pytest.raises(CannotReachError):
        await entering
    serving = await entered(place, begun)
    staying = asyncio.ensure_future(place.stay())
    await turns()
    assert not staying.done(), "what failed before is over"
    serving.ends.set_exception(ForbiddenError("not any more"))
    with pytest.raises(ForbiddenError):
        await staying


async def test_two_who_enter_at_once_are_both_told_when_it_is_registered(
    place: places.Place, begun: list[Serving]
) -> None:
    entering = [asyncio.ensure_future(place.enter(URL)) for _ in range(2)]
    await turns()
    assert [one.done() for one in entering] == [False, False]
    begun[-1].registered()
    await asyncio.wait_for(asyncio.gather(*entering), DEADLINE_S)
    assert len(begun) == 1


async def test_who_gave_up_waiting_and_enters_again_is_told_when_it_is_registered(
    place: places.Place, begun: list[Serving]
) -> None:
    entering = asyncio.ensure_future(place.enter(URL))
    await turns()
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    await entered(place, begun)
    assert len(begun) == 1


async def test_what_was_refused_is_not_taken_for_registered_the_next_time(
    place: places.Place, begun: list[Serving]
) -> None:
    entering = asyncio.ensure_future(place.enter(URL))
    await turns()
    begun[-1].stop.set()  # as `serve_services` does with what it is refused with
    begun[-1].ends.set_exception(ForbiddenError("not this token"))
    with pytest.raises(ForbiddenError):
        await entering
    assert not (await entered(place, begun)).stop.is_set()


async def test_what_is_entered_while_it_leaves_is_served_again_once_it_has_left(
    place: places.Place, begun: list[Serving]
) -> None:
    first = await entered(place, begun)
    leaving = asyncio.ensure_future(place.leave())
    await turns()
    assert first.stop.is_set()
    entering = asyncio.ensure_future(place.enter(URL))
    await turns()
    assert (len(begun), entering.done()) == (1, False), "the same services are not served twice at once"
    first.ends.set_result(None)
    await asyncio.wait_for(leaving, DEADLINE_S)
    await turns()
    assert not begun[1].stop.is_set()
    begun[1].registered()
    await asyncio.wait_for(entering, DEADLINE_S)


async def test_a_leave_that_is_cancelled_does_not_end_what_is_entered_later(
    place: places.Place, begun: list[Serving]
) -> None:
    await entered(place, begun)
    leaving = asyncio.ensure_future(place.leave())
    await turns()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert not (await entered(place, begun)).stop.is_set()
    assert len(begun) == 2
