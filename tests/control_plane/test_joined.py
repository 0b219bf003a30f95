"""What several control planes say of the same, put together: nothing is lost, nothing is there twice."""

from __future__ import annotations

from typing import Any

import pytest

from llama_deploy.control_plane.joined import joined_service, joined_services, joined_waiting, rank_before
from llama_deploy.types import InstanceView, MissingPlane, ServiceDefinition, ServiceView, WaitingPage, WaitingStep


def view(name: str = "echo", **fields: Any) -> ServiceView:
    return ServiceView(definition=ServiceDefinition(service_name=name, description=""), **fields)


def instance(instance_id: str, **fields: Any) -> InstanceView:
    return InstanceView(instance_id=instance_id, **{"capacity": 4, **fields})


def test_counts_are_added_and_an_instance_is_there_once() -> None:
    one = view(
        instances=[instance("i", running=1, connected_at=5.0, last_seen_at=9.0), instance("only-a", running=2)],
        waiting=3, running=3, answered=10, oldest_waiting_s=1.5, held_back={"rate": 2}, state="up",
    )  # fmt: skip
    other = view(
        instances=[instance("i", running=3, connected_at=4.0, last_seen_at=8.0, left_behind=1)],
        waiting=4, running=3, answered=5, oldest_waiting_s=2.5, held_back={"rate": 1, "paused": 1}, state="up",
    )  # fmt: skip
    joined = joined_service([("a", one), ("b", other)], [])
    assert (joined.waiting, joined.running, joined.answered, joined.oldest_waiting_s) == (7, 6, 15, 2.5)
    assert joined.held_back == {"rate": 3, "paused": 1}
    both, alone = joined.instances
    assert (both.instance_id, both.running, both.capacity, both.left_behind) == ("i", 4, 4, 1)
    assert (both.connected_at, both.last_seen_at, both.control_planes) == (4.0, 9.0, ["a", "b"])
    assert (alone.instance_id, alone.control_planes) == ("only-a", ["a"])


@pytest.mark.parametrize(
    ("parts", "state"),
    [
        ([view(state="down"), view(instances=[instance("i")], state="up")], "up"),
        ([view(state="down"), view(state="returning")], "returning"),
        ([view(state="down"), view(state="down")], "down"),
        ([view(instances=[instance("i")]), view(instances=[instance("i", capacity=0, draining=True)])], "draining"),
        ([view(instances=[instance("i")]), view(instances=[instance("j", capacity=0, draining=True)])], "up"),
    ],
)
def test_the_state_is_that_of_all(parts: list[ServiceView], state: str) -> None:
    joined = joined_service([(str(number), part) for number, part in enumerate(parts)], [])
    assert joined.state == state


def test_services_that_one_knows_are_listed_and_who_is_missing_is_named() -> None:
    gone = MissingPlane(name="c", url="http://c", why="It is gone.")
    joined = joined_services([("a", [view("b")]), ("b", [view("a"), view("b")])], [gone])
    assert [one.definition.service_name for one in joined] == ["a", "b"]
    assert [one.missing for one in joined] == [[gone], [gone]]


def part(plane: str, depth: int, after: int, limit: int) -> tuple[str, WaitingPage]:
    places = range(after + 1, min(depth, after + limit) + 1)
    steps = [WaitingStep(place=n, step_id=f"{plane}{n}", task_id="", session_id="", priority=n % 3) for n in places]
    return plane, WaitingPage(items=steps, next=after + limit if depth > after + limit else None, total=depth)


@pytest.mark.parametrize("depths", [(0, 0), (1, 0), (3, 3), (2, 9), (7, 1, 4), (0, 30, 5)])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_of_what_waits_are_whole_and_in_turns(depths: tuple[int, ...], limit: int) -> None:
    names = "abc"
    whole = joined_waiting([part(names[n], d, 0, 1000) for n, d in enumerate(depths)], after=0, skip=0, limit=1000)
    assert len(whole.items) == sum(depths) == whole.total
    own_places = [int(step.step_id[1:]) for step in whole.items]
    assert own_places == sorted(own_places), "who is next at any of them goes before who is second at another"
    paged: list[WaitingStep] = []
    after: int | None = 0
    while after is not None:
        before = rank_before(depths, after)
        skip = after - sum(min(depth, before) for depth in depths)
        assert 0 <= skip < max(2, len(depths))
        parts = [part(names[n], depth, before, limit) for n, depth in enumerate(depths)]
        page = joined_waiting(parts, after=after, skip=skip, limit=limit)
        paged += page.items
        assert page.next is None or page.items
        after = page.next
    assert [step.step_id for step in paged] == [step.step_id for step in whole.items]
    assert [step.place for step in paged] == list(range(1, sum(depths) + 1))
    assert {step.control_plane for step in paged} <= set(names)
