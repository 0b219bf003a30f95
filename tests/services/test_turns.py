"""Turns: nothing waits for one control plane; for several, what is beyond `concurrency` waits in order."""

from __future__ import annotations

from llama_deploy.services import service
from llama_deploy.services.base import Service
from llama_deploy.services.turns import Turns


@service(concurrency=2)
async def work(text: str) -> str:
    """Does nothing of its own."""
    return text


def _turns(*, limited: bool) -> tuple[Turns, list[str]]:
    served: Service = work
    turns = Turns({"work": served})
    turns.limited = limited
    return turns, []


def _noted(begun: list[str], name: str) -> bool:
    begun.append(name)
    return True


def test_one_control_plane_alone_is_never_held_up() -> None:
    turns, begun = _turns(limited=False)
    assert all(turns.take("work", lambda: _noted(begun, "late")) for _ in range(5))
    assert turns.running["work"] == 5
    assert begun == []


def test_what_is_beyond_waits_in_order_and_what_goes_on_is_first() -> None:
    turns, begun = _turns(limited=True)
    assert turns.take("work", lambda: False)
    assert turns.take("work", lambda: False)

    def later(name: str, *, wanted: bool = True, first: bool = False) -> bool:
        def go() -> bool:
            begun.append(name)
            return wanted

        return turns.take("work", go, first=first)

    assert not later("a")
    assert not later("not wanted any more", wanted=False)
    assert not later("b")
    assert not later("comes back", first=True)
    turns.end("work")
    assert begun == ["comes back"]
    turns.end("work")
    assert begun == ["comes back", "a"]
    turns.end("work")
    assert begun == ["comes back", "a", "not wanted any more", "b"]
    assert turns.running["work"] == 2
    turns.end("work")
    turns.end("work")
    assert turns.running["work"] == 0


def test_what_lends_its_turn_lets_another_one_begin() -> None:
    turns, begun = _turns(limited=True)
    assert turns.take("work", lambda: False)
    assert turns.take("work", lambda: False)
    assert not turns.take("work", lambda: _noted(begun, "next"))
    turns.end("work")  # it waits for a call
    assert begun == ["next"]
    turns.insist("work")  # and goes on without waiting for that
    assert turns.running["work"] == 3
    assert not turns.take("work", lambda: _noted(begun, "last"))
    turns.end("work")
    assert begun == ["next"]
    turns.end("work")
    assert begun == ["next", "last"]
