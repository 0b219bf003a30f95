"""The arithmetic of repeated measurements."""

from __future__ import annotations

import pytest
from benchmarks.summaries import Summary, paired_ratios, summarise


def test_a_summary_holds_the_extremes_the_middle_and_the_number() -> None:
    assert summarise([3.0, 1.0, 2.0]) == Summary(minimum=1.0, median=2.0, maximum=3.0, count=3)
    assert summarise([1.0, 2.0]).median == 1.5


def test_nothing_cannot_be_summarised() -> None:
    with pytest.raises(ValueError, match="no measurement"):
        summarise([])


def test_the_spread_is_relative_to_the_median() -> None:
    assert summarise([8.0, 10.0, 13.0]).spread == pytest.approx(0.5)
    assert summarise([0.0, 0.0]).spread == 0.0


def test_ratios_compare_the_same_round_only() -> None:
    ours = {1: 10.0, 2: 30.0, 4: 5.0}
    theirs = {2: 10.0, 1: 20.0, 3: 1.0}
    assert paired_ratios(ours, theirs) == [0.5, 3.0]


def test_a_round_in_which_theirs_is_nothing_has_no_ratio() -> None:
    assert paired_ratios({1: 1.0, 2: 4.0}, {1: 0.0, 2: 2.0}) == [2.0]
