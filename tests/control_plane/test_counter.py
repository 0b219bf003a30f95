"""What control planes tell whoever counts, in any order and with any values: the counts are those of what was told."""

from __future__ import annotations

from collections import Counter as Counts
from typing import Any, get_args

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_deploy.control_plane.counter import Counter
from llama_deploy.control_plane.gate import Gate, Visitor
from llama_deploy.messages.counting import (
    RUNS,
    Admitted,
    Begin,
    Complete,
    Left,
    Seat,
    Seats,
    TellingOp,
    decode_telling_frame,
)
from llama_deploy.messages.frames import encode_frame
from llama_deploy.types import RateLimit, ServiceLimits

OWNERS = ("x", "y")
NAMES = st.lists(st.sampled_from(["s1", "s2", "s3", "s4"]), max_size=3)
SEATS = st.builds(
    Seat,
    number=st.integers(1, 9),
    name=st.sampled_from(["s1", "s2", "s3", "s4"]),
    session_id=st.sampled_from(["a", "b"]),
    key=st.sampled_from(["", "k"]),
    priority=st.integers(0, 9),
    turn=st.integers(0, 3),
    waits_s=st.floats(0, 100),
)
OPERATIONS: st.SearchStrategy[Any] = st.one_of(
    st.builds(Begin, st.just("s"), st.sampled_from(OWNERS), st.lists(st.floats(0, 100), max_size=3)),
    st.builds(Seats, st.just("s"), st.lists(SEATS, max_size=4)),
    st.builds(Left, st.just("s"), NAMES, NAMES, NAMES),
    st.builds(Complete, st.just("s")),
)
TURNS = st.lists(st.tuples(st.sampled_from([*OWNERS, "drain", "gone", "back"]), OPERATIONS), max_size=40)


def test_every_kind_of_operation_is_tried() -> None:
    assert set(get_args(TellingOp)) == {Begin, Seats, Left, Complete}


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(turns=TURNS)
def test_the_counts_are_those_of_what_was_told(turns: list[tuple[str, Any]]) -> None:
    gate = Gate("s")
    gate.set_limits(ServiceLimits(running_max=2, running_max_per_key=1, rate=RateLimit(count=50, seconds=1.0)))
    now = 1_000.0
    counter = Counter(gate, lambda: now)
    said: dict[str, list[Any]] = {owner: [] for owner in OWNERS}
    posts = {owner: said[owner].append for owner in OWNERS}
    for who, operation in turns:
        before = len(gate.places)
        if who in OWNERS:
            (arrived,) = decode_telling_frame(encode_frame([operation]))
            speaks = msgspec.structs.replace(arrived, owner=who) if isinstance(arrived, Begin) else arrived
            counter.take(who, speaks, posts[who])
        elif who == "drain":
            while gate.room.ready and (at := gate.opens_at(now)) is not None and at <= now:
                waiting = gate.next_guest()
                assert waiting is not None
                assert isinstance(waiting.item, Visitor)
                counter.admit(waiting.item)
            counter.say()
            assert len(gate.places) <= max(2, before), "no more than the limit, but what was told to run"
        elif who == "gone":
            counter.lost("x")
        else:
            counter.let_go({"y"}, lambda owner, _: owner == "x")
        _check(gate, counter)
    counter.close()
    assert (gate.places, len(gate.room), gate.visitors) == ({}, 0, 0)
    for owner in OWNERS:
        numbers = [number for one in said[owner] if isinstance(one, Admitted) for number in one.numbers]
        assert all(1 <= number <= 9 for number in numbers)


def test_a_place_that_is_told_again_of_another_session_counts_there() -> None:
    gate = Gate("s")
    gate.set_limits(ServiceLimits(running_max_per_session=1, running_max_per_key=1))
    counter = Counter(gate, lambda: 1_000.0)
    said: list[Any] = []
    post = said.append
    counter.take("x", Begin("s", "x", []), post)
    for session_id, key in (("a", ""), ("b", "k")):
        seat = Seat(number=1, name="s1", session_id=session_id, key=key, priority=0, turn=RUNS, waits_s=0.0)
        counter.take("x", Seats("s", [seat]), post)
        _check(gate, counter)
    assert gate.has_room_for("a", "")
    assert not gate.has_room_for("b", "k")


def _check(gate: Gate, counter: Counter) -> None:
    told = {name: session_id for places in counter._places.values() for name, session_id in places.items()}
    assert {name: place.session_id for name, place in gate.places.items()} == told
    assert gate.visitors == len(gate.room)
    assert not gate.places.keys() & {waiting.name for waiting in gate.room.in_order()}
    assert {waiting.item.owner for waiting in gate.room.in_order() if isinstance(waiting.item, Visitor)} <= set(
        counter.posts
    ), "who is not connected has nothing that waits"
    places = gate.places.values()
    assert +gate._sessions == Counts(place.session_id for place in places)
    assert +gate._keys == Counts(place.key for place in places)
