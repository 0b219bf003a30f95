"""The list of figures and its targets."""

from __future__ import annotations

from benchmarks.figures import FIGURES, Target
from benchmarks.scenarios.registry import SCENARIOS
from benchmarks.systems.peers import PEERS


def test_every_figure_belongs_to_a_scenario() -> None:
    assert {figure.key.split(".")[0] for figure in FIGURES} == set(SCENARIOS)


def test_keys_are_unique() -> None:
    keys = [figure.key for figure in FIGURES]
    assert len(keys) == len(set(keys))


def test_ratio_targets_name_peers_that_exist() -> None:
    named = {name for figure in FIGURES for name in figure.target.ratio_at_least}
    assert named <= {peer.name for peer in PEERS}


def test_a_limit_may_grow_with_what_a_commit_costs() -> None:
    target = Target(at_most=2.0, commits=2)
    assert target.limit(commit_ms=0.5) == 3.0
    assert target.met(2.9, commit_ms=0.5)
    assert not target.met(2.9, commit_ms=0.1)


def test_without_a_target_there_is_nothing_to_meet() -> None:
    assert Target().met(1.0, commit_ms=0.1) is None
    assert Target(ratio_at_least={"celery": 4.0}).met(1.0, commit_ms=0.1) is None


def test_a_lower_limit_is_met_from_above() -> None:
    assert Target(at_least=2500).met(2500, commit_ms=0)
    assert Target(at_least=2500).met(2499, commit_ms=0) is False
