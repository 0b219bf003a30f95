"""What goes wrong in a run, and when: drawn from the seed, and over after a while, so that everything can end well.

Each run draws which kinds of faults it has; runs with few kinds find what many together would hide. `Faults.run` makes
them happen, `Faults.heal` puts everything right again.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

from llama_deploy.runtime import FAILPOINTS
from llama_deploy.runtime.failpoints import arm, disarm
from llama_deploy.testing.simulation.cluster import Cluster
from llama_deploy.testing.simulation.loop import Killed, Process

KINDS = (
    "crash control plane",
    "crash at a failpoint",
    "stop control plane",
    "crash instance",
    "drain instance",
    "freeze instance",
    "freeze control plane",
    "crash client",
    "cut wires",
    "silence wires",
    "unreachable",
    "slow network",
    "queue misbehaves",
    "wipe queue",
    "commits fail",
    "commit refused",
    "slow disk",
    "clock jumps",
)
"""Every kind of fault."""


class Faults:
    """The faults of one run."""

    def __init__(self, cluster: Cluster, chance: random.Random, *, kinds: list[str], span_s: float) -> None:
        self.cluster = cluster
        self.chance = chance
        self.kinds = kinds
        self.span_s = span_s
        self.counts: Counter[str] = Counter()
        """How often each kind has happened."""
        self._clients = 1
        self._armed: dict[str, int] = {}
        self._actions: dict[str, Callable[[], None]] = {
            "crash control plane": self._crash_plane,
            "crash at a failpoint": self._arm_failpoint,
            "stop control plane": self._stop_plane,
            "crash instance": self._crash_instance,
            "drain instance": self._drain_instance,
            "freeze instance": self._freeze_instance,
            "freeze control plane": self._freeze_plane,
            "crash client": self._crash_client,
            "cut wires": self._cut,
            "silence wires": self._silence,
            "unreachable": self._unreachable,
            "slow network": self._slow_network,
            "wipe queue": self._wipe,
            "commits fail": self._fail_commits,
            "commit refused": self._refuse,
            "slow disk": self._slow_disk,
            "clock jumps": self._jump,
        }

    def begin(self, clients: int) -> None:
        """Set up what holds from the start on."""
        self._clients = clients
        chance, cluster = self.chance, self.cluster
        if "queue misbehaves" in self.kinds:
            self.counts["queue misbehaves"] += 1
            cluster.queue_faults = {
                "loss_share": chance.choice([0.0, 0.05, 0.3]),
                "repeat_share": chance.choice([0.0, 0.2, 0.9]),
                "delay_share": chance.choice([0.0, 0.2, 0.9]),
                "delay_s_max": chance.choice([0.01, 1.0, 8.0]),
            }
        cluster.network.vanish_share = chance.choice([0.0, 0.2, 0.8])
        if "cut wires" in self.kinds:
            cluster.network.request_loss_share = 0.1
        for name in FAILPOINTS:
            arm(name, lambda name=name: self._pass(name))  # type: ignore[misc]

    async def run(self) -> None:
        """Let things go wrong until the span is over."""
        kinds = [kind for kind in self.kinds if kind in self._actions]
        count = self.chance.randint(1, 2 + int(self.span_s / 3)) if kinds else 0
        times = sorted(self.chance.uniform(0.0, self.span_s) for _ in range(count))
        loop = self.cluster.loop
        for when in times:
            await asyncio.sleep(max(0.0, when - loop.time()))
            kind = self.chance.choice(kinds)
            loop.note("fault", kind)
            self.counts[kind] += 1
            self._actions[kind]()
        await asyncio.sleep(max(0.0, self.span_s - loop.time()))

    def heal(self) -> None:
        """Put everything right; what is gone comes back."""
        cluster = self.cluster
        cluster.loop.note("healed")
        self._armed.clear()
        disarm()
        cluster.platter.failing = False
        cluster.platter.refuse_next = 0
        cluster.platter.commit_s_max, cluster.platter.read_s_max = 0.002, 0.001
        network = cluster.network
        network.unreachable = False
        network.request_loss_share = network.stall_share = 0.0
        cluster.queue_faults = {}
        if cluster.queue is not None:
            cluster.queue.loss_share = cluster.queue.repeat_share = cluster.queue.delay_share = 0.0
        for process in (cluster.plane_process, *(found[0] for found in cluster.instances.values())):
            if process is not None:
                process.thaw()
        self.bring_back()

    def bring_back(self) -> None:
        """Start whatever does not run."""
        self.cluster.start_plane()
        for name in self.instance_names:
            self.cluster.start_instance(name)
        for number in range(self._clients):
            self.cluster.start_client(number)

    instance_names: tuple[str, ...] = ("one",)

    # --- crashes ----------------------------------------------------------------------------------------------------

    def _pass(self, name: str) -> None:
        """A process passes a failpoint: it may be the one where it dies."""
        process = self.cluster.loop.process
        if process is None or process.dead or name not in self._armed:
            return
        self._armed[name] -= 1
        if self._armed[name] <= 0:
            del self._armed[name]
            self.cluster.loop.note("died at", name)
            self._kill(process)
            raise Killed

    def _kill(self, process: Process) -> None:
        process.kill()
        self._later(self.bring_back)

    def _later(self, callback: Callable[[], None], longest_s: float = 5.0) -> None:
        delay_s = self.chance.choice([0.0, 0.3, self.chance.uniform(0.0, longest_s)])
        self.cluster.loop.call_later(delay_s, callback)

    def _arm_failpoint(self) -> None:
        self._armed[self.chance.choice(sorted(FAILPOINTS))] = self.chance.randint(1, 4)

    def _crash_plane(self) -> None:
        if self.cluster.plane_process is not None:
            self._kill(self.cluster.plane_process)

    def _stop_plane(self) -> None:
        self.cluster.stop_plane()
        self.cluster.loop.call_later(12.0, self.bring_back)

    def _instance(self) -> Process | None:
        found = [process for process, _, _ in self.cluster.instances.values()]
        return self.chance.choice(found) if found else None

    def _crash_instance(self) -> None:
        process = self._instance()
        if process is not None:
            self._kill(process)

    def _drain_instance(self) -> None:
        if self.cluster.instances:
            self.cluster.drain_instance(self.chance.choice(list(self.cluster.instances)))
            self.cluster.loop.call_later(5.0, self.bring_back)

    def _crash_client(self) -> None:
        if self.cluster.clients:
            self._kill(self.chance.choice(list(self.cluster.clients.values())))

    def _freeze(self, process: Process | None) -> None:
        if process is not None and not process.frozen:
            process.freeze()
            self.cluster.loop.call_later(self.chance.choice([0.2, 3.0, 15.0]), process.thaw)

    def _freeze_instance(self) -> None:
        self._freeze(self._instance())

    def _freeze_plane(self) -> None:
        self._freeze(self.cluster.plane_process)

    # --- network and queue ------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        for wire in list(self.cluster.network.wires):
            if self.chance.random() < 0.6:
                wire.cut(self.chance.choice([0.0, 0.1, 1.0]))

    def _silence(self) -> None:
        for wire in list(self.cluster.network.wires):
            if self.chance.random() < 0.5:
                wire.silence()

    def _unreachable(self) -> None:
        network = self.cluster.network
        network.unreachable = True
        for wire in list(network.wires):
            wire.silence()
        self.cluster.loop.call_later(self.chance.uniform(0.5, 20.0), setattr, network, "unreachable", False)

    def _slow_network(self) -> None:
        network = self.cluster.network
        network.latency_s_max = self.chance.choice([0.01, 0.1, 0.5])
        network.stall_share = self.chance.choice([0.0, 0.02, 0.1])
        network.stall_s_max = self.chance.choice([1.0, 4.0])

    def _wipe(self) -> None:
        if self.cluster.queue is not None:
            self.cluster.queue.wipe()

    # --- disk and clocks --------------------------------------------------------------------------------------------

    def _fail_commits(self) -> None:
        platter = self.cluster.platter
        platter.failing = True
        self.cluster.loop.call_later(self.chance.uniform(0.1, 6.0), setattr, platter, "failing", False)

    def _refuse(self) -> None:
        """What is refused oftener in a row than the product tries is given up, so there are few of them in a run."""
        platter = self.cluster.platter
        platter.refuse_next = min(self.chance.choice([1, 1, 2, 3]), 5 - platter.refused)

    def _slow_disk(self) -> None:
        self.cluster.platter.commit_s_max = self.chance.choice([0.02, 0.2, 1.0])
        self.cluster.platter.read_s_max = self.chance.choice([0.001, 0.1])

    def _jump(self) -> None:
        processes = [self.cluster.plane_process, self._instance()]
        process = self.chance.choice(processes)
        if process is not None:
            process.clock_offset_s += self.chance.choice([-300.0, -5.0, -0.3, 0.3, 5.0, 600.0])
