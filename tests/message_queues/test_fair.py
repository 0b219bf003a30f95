"""Fair turns: shares by priority, turns of keys, order within a lane, and that nothing starves."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llama_deploy.message_queues.fair import PRIORITIES, FairQueue

KEYS = st.sampled_from(["", "a", "b", "c"])
LANES = st.sampled_from(["", "s", "t"])
PRIORITY = st.integers(0, PRIORITIES - 1)


def filled(*places: tuple[int, str], each: int = 2000) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue()
    for number in range(each):
        for priority, key in places:
            queue.push(f"{priority}{key}:{number}", number, priority=priority, key=key)
    return queue


def popped(queue: FairQueue[int]) -> str:
    found = queue.pop()
    assert found is not None
    return found.name


def shares(queue: FairQueue[int], turns: int) -> Counter[str]:
    return Counter(popped(queue).partition(":")[0] for _ in range(turns))


def test_each_priority_has_twice_the_turns_of_the_one_below() -> None:
    assert shares(filled((9, ""), (8, "")), 300) == {"9": 200, "8": 100}
    assert shares(filled((9, ""), (8, ""), (7, "")), 700) == {"9": 400, "8": 200, "7": 100}
    assert shares(filled((9, ""), (0, "")), 513) == {"9": 512, "0": 1}


def test_what_is_of_higher_priority_goes_next() -> None:
    queue = filled((5, ""), (2, ""))
    shares(queue, 100)
    queue.push("urgent", 0, priority=9)
    assert popped(queue) == "urgent"


def test_what_is_of_lower_priority_does_not_go_first_because_it_is_new() -> None:
    queue = filled((5, ""))
    shares(queue, 10)
    queue.push("slow", 0, priority=1)
    assert shares(queue, 16) == {"5": 16}
    assert popped(queue) == "slow"


def test_keys_take_turns_however_much_each_has() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.push(f"big:{number}", number, key="big")
    for number in range(3):
        queue.push(f"small:{number}", number, key="small")
        queue.push(f"none:{number}", number)
    assert shares(queue, 9) == {"big": 3, "small": 3, "none": 3}


def test_first_in_first_out_within_a_key() -> None:
    queue = filled((5, "a"), (5, "b"), each=50)
    order: dict[str, list[int]] = defaultdict(list)
    while (found := queue.pop()) is not None:
        order[found.key].append(found.item)
    assert order == {"a": list(range(50)), "b": list(range(50))}


def test_what_comes_back_goes_first_in_its_lane() -> None:
    queue = filled((5, "a"), each=3)
    queue.push("back", 9, priority=5, key="a", first=True)
    assert [popped(queue) for _ in range(4)] == ["back", "5a:0", "5a:1", "5a:2"]
    assert (len(queue), queue.pop(), queue.ready, queue.oldest()) == (0, None, False, None)


def test_what_is_held_keeps_its_place_and_the_others_go() -> None:
    queue = filled((5, "a"), (5, "b"), (9, "a"), each=2)
    queue.hold_key("a")
    assert [popped(queue), popped(queue)] == ["5b:0", "5b:1"]
    assert (queue.pop(), queue.ready, len(queue)) == (None, False, 4)
    queue.push("9a:2", 2, priority=9, key="a")
    assert [waiting.name for waiting in queue.in_order()] == ["9a:0", "9a:1", "9a:2", "5a:0", "5a:1"]
    queue.let_key_go("a")
    assert popped(queue) == "9a:0"


def test_a_lane_that_is_held_holds_back_no_other_of_its_key() -> None:
    queue: FairQueue[int] = FairQueue()
    for lane in ("s", "t"):
        for number in range(2):
            queue.push(f"{lane}{number}", number, key="a", lane=lane)
    queue.hold_lane("s")
    assert [popped(queue), popped(queue)] == ["t0", "t1"]
    assert queue.pop() is None
    queue.let_lane_go("s")
    assert popped(queue) == "s0"


@given(st.integers(0, 9), st.lists(st.tuples(PRIORITY, KEYS), min_size=1, max_size=6))
def test_nothing_starves_while_others_keep_coming(priority: int, others: list[tuple[int, str]]) -> None:
    queue: FairQueue[int] = FairQueue()
    keys = len({key for _, key in others}) + 1
    queue.push("victim", 0, priority=priority, key="victim")
    bound = keys * 2**PRIORITIES
    for number in range(bound):
        for position, (other, key) in enumerate(others):
            queue.push(f"{position}:{number}", number, priority=other, key=key)
        if popped(queue) == "victim":
            return
    raise AssertionError(f"{bound} others went first")


@given(st.integers(0, 8), st.integers(0, 3))
def test_who_is_held_again_and_again_does_not_starve(priority: int, lanes: int) -> None:
    """Its key is held whenever another of the key works, and that one is always of a higher priority."""
    queue: FairQueue[int] = FairQueue()
    queue.push("victim", 0, priority=priority, key="a", lane="v" * lanes)
    for number in range(4 * 2**PRIORITIES):
        queue.push(f"a{number}", number, priority=9, key="a")
        queue.push(f"b{number}", number, priority=priority, key=f"b{number % 50}")
        queue.let_key_go("a")
        if "victim" in (popped(queue), popped(queue)):
            return
        queue.hold_key("a")
    raise AssertionError("starved")


class Turns(RuleBasedStateMachine):
    """Random sequences beside a plain model: lanes in the order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.lanes: dict[tuple[int, str, str], deque[str]] = defaultdict(deque)
        self.keys_held: set[str] = set()
        self.lanes_held: set[str] = set()
        self.made = 0

    def free(self) -> list[str]:
        """What may go: the first of each lane that is not held."""
        return [
            names[0]
            for (_, key, lane), names in self.lanes.items()
            if names and key not in self.keys_held and lane not in self.lanes_held
        ]

    @initialize(count=st.integers(0, 3))
    def fill(self, count: int) -> None:
        for _ in range(count):
            self.push(5, "", "", first=False)

    @rule(priority=PRIORITY, key=KEYS, lane=LANES, first=st.booleans())
    def push(self, priority: int, key: str, lane: str, *, first: bool) -> None:
        self.made += 1
        name = f"{priority}{key}{lane}{self.made}"
        self.queue.push(name, self.made, priority=priority, key=key, lane=lane, first=first)
        names = self.lanes[priority, key, lane]
        if first:
            names.appendleft(name)
        else:
            names.append(name)

    @rule()
    def pop(self) -> None:
        expected = next(self.queue.in_order(), None)
        found, free = self.queue.pop(), self.free()
        assert (found is None) == (not free)
        if found is not None:
            assert found is expected
            assert found.name in free
            self.lanes[found.priority, found.key, found.lane].popleft()

    @precondition(lambda self: any(self.lanes.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for names in self.lanes.values() for name in names]))
        found = self.queue.remove(name)
        assert found is not None
        assert self.queue.remove(name) is None
        self.lanes[found.priority, found.key, found.lane].remove(name)

    @rule(key=KEYS)
    def hold_key(self, key: str) -> None:
        self.queue.hold_key(key)
        self.keys_held.add(key)

    @rule(key=KEYS)
    def let_key_go(self, key: str) -> None:
        self.queue.let_key_go(key)
        self.keys_held.discard(key)

    @rule(lane=LANES.filter(bool))
    def hold_lane(self, lane: str) -> None:
        self.queue.hold_lane(lane)
        self.lanes_held.add(lane)

    @rule(lane=LANES.filter(bool))
    def let_lane_go(self, lane: str) -> None:
        self.queue.let_lane_go(lane)
        self.lanes_held.discard(lane)

    @invariant()
    def it_holds_what_waits(self) -> None:
        names = [name for lane in self.lanes.values() for name in lane]
        assert len(self.queue) == len(names)
        assert sorted(waiting.name for waiting in self.queue.in_order()) == sorted(names)
        assert self.queue.ready == bool(self.free())
        oldest = self.queue.oldest()
        assert (oldest is None) == (not names)


TestTurns = Turns.TestCase


def test_what_is_alike_is_first_in_first_out_and_keeps_its_order_when_others_come() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(4):
        queue.push(f"plain:{number}", number)
    queue.push("back", 9, first=True)
    assert popped(queue) == "back"
    queue.push("urgent", 0, priority=9)
    assert [waiting.name for waiting in queue.in_order()] == ["urgent", *(f"plain:{number}" for number in range(4))]
    assert queue.remove("plain:1") is not None
    assert [popped(queue) for _ in range(4)] == ["urgent", "plain:0", "plain:2", "plain:3"]
    assert queue.pop() is None
    queue.push("again", 1)
    assert popped(queue) == "again"


def test_what_has_no_key_can_be_held_while_all_that_waits_is_alike() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push("one", 1)
    queue.hold_key("")
    assert queue.pop() is None
    assert not queue.ready
    queue.let_key_go("")
    assert popped(queue) == "one"
