"""The scenarios by name, in the order in which they run."""

from __future__ import annotations

from benchmarks.scenarios.base import Scenario
from benchmarks.scenarios.our_own import growth, session, start_up, streams
from benchmarks.scenarios.patterns import group_chat, wide_map
from benchmarks.scenarios.recovery import recovery
from benchmarks.scenarios.space import space
from benchmarks.scenarios.standing import idle
from benchmarks.scenarios.throughput import echo, fan_out, two_hop

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("echo", "one service, there and back", echo, rounds_max=99),
        Scenario("two_hop", "two services, one after the other", two_hop, rounds_max=99),
        Scenario("fan_out", "one task of many steps", fan_out, rounds_max=99),
        Scenario("wide_map", "the catalogue's map over a long list", wide_map, rounds_max=99),
        Scenario("group_chat", "the catalogue's group chat, short and long", group_chat, rounds_max=99),
        Scenario("streams", "a service's stream events", streams, rounds_max=99),
        Scenario("start_up", "from nothing to a result", start_up, rounds_max=5),
        Scenario("idle", "doing nothing", idle, rounds_max=2),
        Scenario("space", "what a finished task leaves in the store", space, rounds_max=1),
        Scenario("session", "many tasks in one session", session, rounds_max=3),
        Scenario("recovery", "after kill -9", recovery, rounds_max=3),
        Scenario("growth", "many finished tasks in the store", growth, rounds_max=1),
    )
}
