"""The faults of a run: what happens to what, when and for how long. The same seed gives the same faults.

Nothing here touches anything: `faults` carries a schedule out. The operating system decides what a fault meets.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from tests.chaos.surroundings import BROKER, CLIENT, INSTANCE, PLANE, RECEIVER, STORE
from tests.support.networks import Link

Kind = Literal["kill", "stop", "terminate", "crash", "restart", "wipe", "cut"]

PAUSE_BETWEEN_S = (0.3, 2.5)
"""From one fault of a process to the next."""
FIRST_FAULT_S = 1.5
CALM_AT_THE_END_S = 2.0
"""No fault begins later than this before the end of the load."""
WHOLE_S = 60.0
"""In a shorter run, what happens around the processes happens as many times sooner, so that it happens at all."""
SHORTEN_MOST = 5.0

HELD_S: dict[Kind, tuple[float, float]] = {"kill": (0.0, 1.5), "stop": (0.2, 5.0), "terminate": (0.0, 0.5)}
"""How long a process stays away: killed and not restarted, stopped and not continued, ended and not restarted."""
WEIGHTS: dict[Kind, int] = {"kill": 5, "stop": 3, "terminate": 2}
DATABASE_EVERY_S = (5.0, 40.0)
DATABASE_AWAY_S = (0.0, 2.0)
BROKER_EVERY_S = (8.0, 40.0)
BROKER_AWAY_S = (0.0, 2.0)
CUT_EVERY_S = (1.0, 8.0)
CUT_HELD_S = (0.2, 8.0)


@dataclass(frozen=True)
class Fault:
    """Something happens to a process, a server or a way of the network, and is over after a while."""

    at_s: float
    """Seconds since the load began."""
    target: str
    """`plane-0`, `receiver`, `instance-0`, `client-0`, `store`, `broker`; for a cut two parts with `~` between them."""
    kind: Kind
    held_s: float

    @property
    def what(self) -> str:
        """The fault and what it happens to, without numbers: `kill instance`."""
        return f"{self.kind} {'~'.join(part.split('-')[0] for part in self.target.split('~'))}"


def way_of(target: str) -> Link:
    """The way that a cut is about."""
    one, _, other = target.partition("~")
    return one, other


def schedule(seed: int, *, duration_s: float, instances: int, clients: int, planes: int = 1) -> list[Fault]:
    """The faults of the processes in a load of this length. None is hit again before it is back."""
    chance = random.Random(seed)
    targets = [f"{PLANE}-{n % planes}" for n in range(max(3, planes))]
    targets += [f"{INSTANCE}-{n}" for n in range(instances)] * 2 + [f"{CLIENT}-{n}" for n in range(clients)]
    targets.append(RECEIVER)
    back_at: dict[str, float] = {}
    faults: list[Fault] = []
    at_s = FIRST_FAULT_S
    while at_s < duration_s - CALM_AT_THE_END_S:
        target = chance.choice(targets)
        kind = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind == "terminate" and target.startswith((CLIENT, RECEIVER)):
            kind = "kill"
        held_s = round(chance.uniform(*HELD_S[kind]), 3)
        if back_at.get(target, 0.0) <= at_s:
            faults.append(Fault(round(at_s, 3), target, kind, held_s))
            back_at[target] = at_s + held_s + 1.0
        at_s += chance.uniform(*PAUSE_BETWEEN_S)
    return faults


def schedule_around(
    seed: int, *, duration_s: float, database: bool, broker: bool, links: Sequence[Link]
) -> list[Fault]:
    """The faults of what the processes stand on, in the order of their times."""
    faults: list[Fault] = []
    shorter = min(SHORTEN_MOST, max(1.0, WHOLE_S / duration_s))
    ends_s = duration_s - CALM_AT_THE_END_S

    def series(
        name: str, every_s: tuple[float, float], held_s: tuple[float, float], targets: list[str], *kinds: Kind
    ) -> None:
        """One fault after the other, of each kind in turn."""
        chance = random.Random(f"{seed}/{name}")
        at_s = chance.uniform(FIRST_FAULT_S, FIRST_FAULT_S + every_s[0] / shorter)
        turn = cycle(chance.sample(kinds, len(kinds)))
        while at_s < ends_s:
            held = chance.uniform(held_s[0], held_s[1] / shorter)
            faults.append(Fault(round(at_s, 3), chance.choice(targets), next(turn), round(held, 3)))
            at_s += chance.uniform(every_s[0] / shorter, every_s[1] / shorter)

    if database:
        series(STORE, DATABASE_EVERY_S, DATABASE_AWAY_S, [STORE], "restart", "crash")
    if broker:
        series(BROKER, BROKER_EVERY_S, BROKER_AWAY_S, [BROKER], "wipe", "restart")
    if links:
        series("network", CUT_EVERY_S, CUT_HELD_S, [f"{one}~{other}" for one, other in links], "cut")
    return sorted(faults, key=lambda fault: fault.at_s)
