"""The simulated loop: time that jumps, processes that die in the middle of anything, stand still, and go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from llama_deploy.testing.simulation import ProcessClock, SimulatedLoop, Stuck
from llama_deploy.testing.simulation.loop import Killed

DAY_S = 86_400.0


@pytest.fixture
def loop() -> Iterator[SimulatedLoop]:
    made = SimulatedLoop(1)
    yield made
    made.discard()


def test_days_pass_at_once(loop: SimulatedLoop) -> None:
    async def work() -> float:
        await asyncio.sleep(30 * DAY_S)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DAY_S):
                await asyncio.Event().wait()
        return loop.time()

    assert loop.run_until_complete(work()) == pytest.approx(31 * DAY_S)


def test_a_process_that_is_killed_runs_no_further(loop: SimulatedLoop) -> None:
    process, seen = loop.new_process("p"), list[object]()

    async def work() -> None:
        try:
            for number in range(100):
                seen.append(number)
                await asyncio.sleep(1.0)
        finally:
            seen.append(-1)

    async def main() -> None:
        process.spawn(work)
        await asyncio.sleep(2.5)
        process.kill()
        await asyncio.sleep(10.0)

    loop.run_until_complete(main())
    assert seen == [0, 1, 2]
    assert loop.errors == []


def test_a_process_may_die_in_the_middle_of_a_callback(loop: SimulatedLoop) -> None:
    process, seen = loop.new_process("p"), list[object]()

    def die() -> None:
        process.kill()
        raise Killed

    async def work() -> None:
        loop.call_later(1.0, seen.append, "timer")
        try:
            die()
        except BaseException:  # noqa: BLE001 - as the edge of user code would
            asyncio.get_running_loop().call_soon(seen.append, "caught")

    async def main() -> None:
        process.spawn(work)
        await asyncio.sleep(5.0)

    loop.run_until_complete(main())
    assert seen == []


def test_a_frozen_process_goes_on_where_it_stood(loop: SimulatedLoop) -> None:
    process, seen = loop.new_process("p"), list[object]()

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(1.0)
            seen.append(loop.time())

    async def main() -> None:
        process.spawn(work)
        await asyncio.sleep(1.5)
        process.freeze()
        await asyncio.sleep(10.0)
        process.thaw()
        await asyncio.sleep(5.0)

    loop.run_until_complete(main())
    assert seen == pytest.approx([1.0, 11.5, 12.5], abs=0.01)


def test_processes_are_interleaved_and_each_keeps_its_order() -> None:
    orders = set()
    for seed in range(20):
        loop = SimulatedLoop(seed)
        seen: list[str] = []

        async def main(loop: SimulatedLoop = loop, seen: list[str] = seen) -> None:
            for name in "ab":
                process = loop.new_process(name)
                for number in range(4):
                    process.call_soon(seen.append, f"{name}{number}")
            await asyncio.sleep(1.0)

        loop.run_until_complete(main())
        loop.discard()
        assert [one for one in seen if one[0] == "a"] == ["a0", "a1", "a2", "a3"]
        orders.add(tuple(seen))
    assert len(orders) > 5


def test_what_nobody_handles_is_an_error_of_the_run(loop: SimulatedLoop) -> None:
    async def main() -> None:
        loop.new_process("p").call_soon([].pop)
        await asyncio.sleep(1.0)

    loop.run_until_complete(main())
    assert "IndexError" in loop.errors[0]


def test_a_run_that_waits_for_nothing_or_never_ends_is_stuck() -> None:
    async def spin() -> None:
        for _ in range(1_000_000):
            await asyncio.sleep(0)

    for work in (asyncio.Event().wait, spin):
        loop = SimulatedLoop(1, steps_max=10_000)
        with pytest.raises(Stuck):
            loop.run_until_complete(work())
        loop.discard()


def test_clocks_of_processes_may_jump(loop: SimulatedLoop) -> None:
    first, second = loop.new_process("a"), loop.new_process("b")
    clock, other = ProcessClock(first), ProcessClock(second)
    first.clock_offset_s += 3600.0
    assert clock.now() - other.now() == 3600.0
