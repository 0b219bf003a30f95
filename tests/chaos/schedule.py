"""The faults of a run: what happens to which process, when and for how long. The same seed gives the same faults.

Nothing here touches a process: `driver` carries a schedule out. The operating system decides what a fault meets.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "terminate"]

PLANE = "plane"
PAUSE_BETWEEN_S = (0.3, 2.5)
"""From one fault to the next."""
FIRST_FAULT_S = 1.5
CALM_AT_THE_END_S = 2.0
"""No fault begins later than this before the end of the load."""

HELD_S: dict[Kind, tuple[float, float]] = {"kill": (0.0, 1.5), "stop": (0.2, 5.0), "terminate": (0.0, 0.5)}
"""How long a process stays away: killed and not restarted, stopped and not continued, ended and not restarted."""
WEIGHTS: dict[Kind, int] = {"kill": 5, "stop": 3, "terminate": 2}


@dataclass(frozen=True)
class Fault:
    """One process is killed, stood still or ended cleanly, and comes back after a while."""

    at_s: float
    """Seconds since the load began."""
    target: str
    """`plane`, `instance-0`, `client-0`, and so on."""
    kind: Kind
    held_s: float


def schedule(seed: int, *, duration_s: float, instances: int, clients: int) -> list[Fault]:
    """The faults of a load of this length. No process is hit again before it is back."""
    chance = random.Random(seed)
    targets = [PLANE] * 3 + [f"instance-{n}" for n in range(instances)] * 2 + [f"client-{n}" for n in range(clients)]
    back_at: dict[str, float] = {}
    faults: list[Fault] = []
    at_s = FIRST_FAULT_S
    while at_s < duration_s - CALM_AT_THE_END_S:
        target = chance.choice(targets)
        kind = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind == "terminate" and target.startswith("client"):
            kind = "kill"
        held_s = round(chance.uniform(*HELD_S[kind]), 3)
        if back_at.get(target, 0.0) <= at_s:
            faults.append(Fault(round(at_s, 3), target, kind, held_s))
            back_at[target] = at_s + held_s + 1.0
        at_s += chance.uniform(*PAUSE_BETWEEN_S)
    return faults
