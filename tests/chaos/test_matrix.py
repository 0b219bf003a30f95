"""Some seconds of every cell of the matrix, and what its table says. `make chaos-matrix` runs it as long as asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.chaos.driver import Options
from tests.chaos.matrix import CARRIERS, CELLS, HEADER, Cell, Outcome, run_cell, run_cells, table
from tests.chaos.schedule import CALM_AT_THE_END_S, FIRST_FAULT_S, Fault, schedule_around, way_of
from tests.chaos.surroundings import BROKER, IN_PROCESS, STORE
from tests.support.networks import link

LINKS = [link("plane-0", part) for part in ("client-0", "instance-0", STORE, BROKER)]
RUN_BY_TWO = (IN_PROCESS, "nats", "redis")
"""Carriers with two control planes here; `make chaos-matrix` has them all."""
RUN = [cell for cell in CELLS if cell.planes == 1 or cell.carrier in RUN_BY_TWO]
PAIRS = [RUN[first : first + 2] for first in range(0, len(RUN), 2)]
"""Cells that run at the same time."""
DURATION_S = 15.0
TASKS = 60


@pytest.mark.slow
@pytest.mark.parametrize("cells", PAIRS, ids=lambda cells: " and ".join(cell.name for cell in cells))
async def test_every_cell_has_some_seconds_without_a_difference(cells: Sequence[Cell]) -> None:
    outcomes = await run_cells(cells, duration_s=DURATION_S, tasks=TASKS, seed=4, at_once=2, clients=1)
    assert not [outcome.text for outcome in outcomes if outcome.problems], table(outcomes)
    assert all(outcome.figures["told"] == TASKS for outcome in outcomes)
    faults = [{what.split()[0] for what in outcome.figures["faults"]} for outcome in outcomes]
    assert all("cut" in kinds for kinds in faults)
    of_postgres = [kinds for cell, kinds in zip(cells, faults, strict=True) if cell.store == "postgresql"]
    assert all({"crash", "restart"} & kinds for kinds in of_postgres)
    of_brokers = [kinds for cell, kinds in zip(cells, faults, strict=True) if cell.carrier != IN_PROCESS]
    assert all({"wipe", "restart"} & kinds for kinds in of_brokers)


def test_every_carrier_has_a_cell_and_some_have_two_control_planes() -> None:
    assert {cell.carrier for cell in CELLS if cell.store == "postgresql"} == set(CARRIERS)
    assert {cell.planes for cell in CELLS} == {1, 2}
    assert {cell.planes for cell in CELLS if cell.encrypted} == {1, 2}
    assert len({cell.name for cell in CELLS}) == len(CELLS)


async def test_a_cell_that_breaks_off_is_a_difference(tmp_path: Path) -> None:
    cell = Cell("sqlite", "no such carrier")
    outcome = await run_cell(cell, Options(folder=tmp_path, tasks=7, carrier=cell.carrier))
    assert "KeyError" in outcome.problems[0]
    assert outcome.row()[1] == "7"


def test_the_table_has_a_line_for_each_cell() -> None:
    figures = {
        "tasks": 10,
        "told": 9,
        "faults": {"kill plane": 2, "kill client": 1, "cut plane~store": 4},
        "all_s": 3.5,
    }
    lines = table([Outcome(CELLS[0], figures, ["one"], ""), Outcome(CELLS[1], {}, [], "")]).splitlines()
    assert len(lines) == 3
    assert lines[0].split() == HEADER
    assert "3 kill, 4 cut" in lines[1]
    assert [line.split()[-1] for line in lines[1:]] == ["1", "0"]


def _around(seed: int, duration_s: float) -> list[Fault]:
    return schedule_around(seed, duration_s=duration_s, database=True, broker=True, links=LINKS)


def test_a_seed_gives_the_same_faults_around_the_processes() -> None:
    assert _around(1, 60) == _around(1, 60) != _around(2, 60)
    long = _around(1, 300)
    assert {(fault.target, fault.kind) for fault in long if fault.kind != "cut"} == {
        (STORE, "restart"), (STORE, "crash"), (BROKER, "restart"), (BROKER, "wipe"),
    }  # fmt: skip
    assert {way_of(fault.target) for fault in long if fault.kind == "cut"} == set(LINKS)
    assert [fault.at_s for fault in long] == sorted(fault.at_s for fault in long)
    assert all(FIRST_FAULT_S <= fault.at_s < 300 - CALM_AT_THE_END_S for fault in long)
    assert max(fault.held_s for fault in long if fault.target == STORE) <= 2.0


@pytest.mark.parametrize("seed", range(20))
def test_also_a_short_run_has_a_fault_of_each_kind_of_target(seed: int) -> None:
    faults = _around(seed, 6)
    assert {"cut", *(fault.target for fault in faults)} >= {"cut", STORE, BROKER}
    assert any(fault.kind == "cut" for fault in faults)
