"""All seeds that every change has to pass; `make simulate` runs as many further ones as wanted."""

from __future__ import annotations

import pytest
from tests.testing.simulation.seeds import FAST, SEEDS, chunks, run_all


@pytest.mark.parametrize("seeds", chunks(SEEDS[len(FAST) :]), ids=str)
def test_the_promise_holds(seeds: range) -> None:
    run_all(seeds)
