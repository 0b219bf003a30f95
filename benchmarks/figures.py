"""The figures that are shown: what each is called, its unit, which way is better, and what is aimed at.

A figure's key is its scenario and its name there (`echo.p50_ms`). Figures that are measured but not listed here go
into the JSON alone. A target says where the system should be; nothing fails when it is missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """What a figure should be. Ratios are ours divided by the peer's, measured in the same round."""

    at_least: float | None = None
    at_most: float | None = None
    commits: int = 0
    """So many durable commits of this machine, in ms, are added to `at_most`."""
    ratio_at_least: Mapping[str, float] = field(default_factory=dict)
    """By peer."""

    def limit(self, commit_ms: float) -> float | None:
        """The upper limit on a machine whose commit takes so long; None where there is none."""
        return None if self.at_most is None else self.at_most + self.commits * commit_ms

    def met(self, value: float, commit_ms: float) -> bool | None:
        """Whether a value reaches the absolute target; None where there is none."""
        limit = self.limit(commit_ms)
        if self.at_least is None and limit is None:
            return None
        return (self.at_least is None or value >= self.at_least) and (limit is None or value <= limit)


@dataclass(frozen=True)
class Figure:
    """One figure of the table."""

    key: str
    title: str
    unit: str
    higher_is_better: bool = False
    target: Target = Target()


FIGURES: tuple[Figure, ...] = (
    Figure(
        "echo.tasks_per_s",
        "echo, 64 outstanding",
        "tasks/s",
        higher_is_better=True,
        target=Target(at_least=2500, ratio_at_least={"celery": 4, "taskiq": 2, "saq": 2, "faststream": 0.5}),
    ),
    Figure("echo.p50_ms", "echo, one at a time, p50", "ms", target=Target(at_most=2, commits=2)),
    Figure("echo.p95_ms", "echo, one at a time, p95", "ms"),
    Figure("echo.cpu_ms_per_task", "CPU per echo, all processes", "ms", target=Target(at_most=0.7)),
    Figure(
        "two_hop.tasks_per_s",
        "two hops, 64 outstanding",
        "tasks/s",
        higher_is_better=True,
        target=Target(at_least=1500),
    ),
    Figure("two_hop.p50_ms", "two hops, one at a time, p50", "ms"),
    Figure("two_hop.of_one_hop", "two hops / one hop, p50", "x", target=Target(at_most=1.7)),
    Figure("two_hop.cpu_ms_per_task", "CPU per two-hop task, all processes", "ms"),
    Figure(
        "fan_out.steps_per_s",
        "fan-out and back",
        "steps/s",
        higher_is_better=True,
        target=Target(at_least=5000),
    ),
    Figure(
        "wide_map.steps_per_s",
        "map over a list of 1,000 and back",
        "steps/s",
        higher_is_better=True,
        target=Target(at_least=5000),
    ),
    Figure("wide_map.cpu_ms_per_step", "CPU per step of a map, all processes", "ms"),
    Figure("wide_map.cpu_growth", "CPU per step, a list of 10,000 / of 1,000", "x", target=Target(at_most=1.2)),
    Figure("group_chat.turns_per_s", "group chat of 200 turns", "turns/s", higher_is_better=True),
    Figure("group_chat.bytes_per_turn", "bytes in the store per turn of 200 characters", "bytes"),
    Figure("group_chat.bytes_growth", "bytes per turn, 200 turns / 20 turns", "x", target=Target(at_most=1.2)),
    Figure("group_chat.cpu_growth", "CPU per turn, 200 turns / 20 turns", "x", target=Target(at_most=1.2)),
    Figure("echo.cpu_control_plane_ms", "CPU per echo, control plane", "ms"),
    Figure("echo.cpu_service_ms", "CPU per echo, service", "ms"),
    Figure("echo.cpu_client_ms", "CPU per echo, client", "ms"),
    Figure("echo.cpu_database_ms", "CPU per echo, database", "ms"),
    Figure("echo.cpu_broker_ms", "CPU per echo, broker", "ms"),
    Figure("space.bytes_per_task", "bytes in the store per finished echo", "bytes"),
    Figure("space.log_bytes_per_task", "bytes in the database's log per echo", "bytes"),
    Figure("idle.cpu_percent", "idle CPU, all processes", "% of a core", target=Target(at_most=0.5)),
    Figure("idle.memory_mb", "memory when idle, all processes", "MB"),
    Figure("streams.live_p50_ms", "stream event, service to subscriber, p50", "ms", target=Target(at_most=5)),
    Figure("streams.live_p95_ms", "stream event, service to subscriber, p95", "ms"),
    Figure("streams.events_per_s", "stream events, flat out", "events/s", higher_is_better=True),
    Figure("streams.resume_ms", "a finished stream of 10,000 events read again", "ms", target=Target(at_most=100)),
    Figure("start_up.import_ms", "`import llama_deploy`", "ms", target=Target(at_most=60)),
    Figure("start_up.help_ms", "`llamactl --help`", "ms", target=Target(at_most=120)),
    Figure("start_up.bare_python_ms", "an empty Python program, for comparison", "ms"),
    Figure("start_up.dev_s", "`llamactl dev` to its first result", "s", target=Target(at_most=2.5)),
    Figure("growth.cpu_growth", "CPU per task, many finished tasks / empty store", "x", target=Target(at_most=1.2)),
    Figure("growth.time_growth", "time per task, many finished tasks / empty store", "x", target=Target(at_most=1.2)),
    Figure("growth.memory_idle_mb", "memory of the control plane, idle", "MB", target=Target(at_most=90)),
    Figure(
        "growth.memory_after_mb", "memory of the control plane, after those tasks", "MB", target=Target(at_most=150)
    ),
    Figure("growth.store_bytes_per_task", "bytes in the store per finished task", "bytes"),
    Figure("session.cpu_growth", "CPU per task in one session, last tenth / first", "x", target=Target(at_most=1.2)),
    Figure("session.time_growth", "time per task in one session, last tenth / first", "x", target=Target(at_most=1.2)),
    Figure("recovery.service_s", "service killed in mid-step, until its result", "s", target=Target(at_most=5)),
    Figure("recovery.control_plane_s", "control plane killed with 50 steps of 1 s in flight, until all results", "s"),
    Figure("recovery.control_plane_lost", "… and tasks lost by that", "tasks", target=Target(at_most=0)),
)
