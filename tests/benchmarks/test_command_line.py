"""The options of `python -m benchmarks`."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.__main__ import parse
from benchmarks.scenarios.base import QUICK
from benchmarks.scenarios.registry import SCENARIOS
from benchmarks.systems import placed

from llama_deploy.message_queues.opening import CARRIERS


def test_everything_is_measured_by_default() -> None:
    choice = parse([])
    assert [scenario.name for scenario in choice.scenarios] == list(SCENARIOS)
    assert [system.name for system in choice.systems] == [
        "ours",
        "celery",
        "taskiq",
        "saq",
        "dbos",
        "faststream",
        "floor",
    ]
    assert choice.rounds == 5


def test_a_choice_of_scenarios_peers_and_folder() -> None:
    choice = parse(["--only", "echo,idle", "--peers", "celery", "--out", "elsewhere", "--rounds", "3"])
    assert [scenario.name for scenario in choice.scenarios] == ["echo", "idle"]
    assert [system.name for system in choice.systems] == ["ours", "celery"]
    assert (choice.out, choice.rounds) == (Path("elsewhere"), 3)


def test_no_peers_and_a_quick_run() -> None:
    choice = parse(["--peers", "none", "--quick"])
    assert [system.name for system in choice.systems] == ["ours"]
    assert (choice.sizes, choice.rounds) == (QUICK, 1)


def test_peers_alone() -> None:
    assert [system.name for system in parse(["--without-ours", "--peers", "floor"]).systems] == ["floor"]


def test_an_earlier_commit_is_measured_beside_the_working_tree() -> None:
    choice = parse(["--before", "HEAD~3", "--peers", "none"])
    assert [system.title for system in choice.systems] == ["llama_deploy", "llama_deploy at HEAD~3"]


def test_ours_on_every_store_with_every_carrier() -> None:
    choice = parse(
        ["--stores", "sqlite,postgresql", "--carriers", "simple,nats", "--peers", "celery", "--page", "p.md"]
    )
    names = [system.name for system in choice.systems]
    assert names == ["sqlite-simple", "sqlite-nats", "postgresql-simple", "postgresql-nats", "celery"]
    assert choice.page == Path("p.md")
    assert [system.name for system in parse(["--carriers", "redis", "--peers", "none"]).systems] == ["sqlite-redis"]


def test_every_carrier_and_store_of_the_product_can_be_measured() -> None:
    assert set(placed.CARRIERS) == {"simple", *CARRIERS} - {"sqs"}, "SQS is a service, and its imitation says nothing"
    assert set(placed.STORES) == {"memory", "sqlite", "postgresql"}


def test_an_unknown_name_is_refused_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "ecko"])
    assert "unknown: ecko; there are: echo, two_hop" in capsys.readouterr().err
