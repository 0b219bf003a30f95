"""In which work each failpoint is crashed at: one line per failpoint, and a new failpoint needs its line here.

A `Crash` says which process dies (`where`), what goes on (`works`, from `works.py`), when it is to happen (`when`) and
at which passing of the place. If no work passes a new place, write one in `works.py`: a coroutine that may be begun
again, asserts its outcomes and returns the states of its tasks. `test_failpoints.py` does the rest: it crashes there,
restarts, lets the works finish, and checks what is promised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.processes.works import (
    Work,
    again,
    ages,
    all_held,
    calls,
    cancels,
    erases,
    files,
    held,
    hops,
    looked_at,
    many_streams,
    people,
    recurs,
    remembers,
    sessions,
    streams,
)

Process = Literal["control plane", "instance", "client"]

When = Literal["work", "first start", "restart", "stop", "loss", "join", "give up", "take over", "asked"]
OF_TWO: frozenset[When] = frozenset({"join", "give up", "take over", "asked"})
"""These take two control planes."""

PLANE: Process = "control plane"
INSTANCE: Process = "instance"
CLIENT: Process = "client"


@dataclass(frozen=True)
class Crash:
    """A crash of one process at a failpoint."""

    where: Process
    works: tuple[Work, ...] = (hops,)
    passing: int = 1
    when: When = "work"
    """`work`: while the works are done. `first start`, `restart`: it starts, without or with unfinished tasks.
    `stop`: it is stopped cleanly. `loss`: an instance is killed while it holds steps. Of two control planes: `join`: it
    is the second one, and gets its part. `give up`: it gives a part to the second one. `take over`: the other one is
    killed. `asked`: both have their part, and it is asked about all."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the control plane for which the place is passed soon."""


CRASHES: dict[str, Crash] = {
    # --- the store's file
    "store.file_created": Crash(PLANE, when="first start"),
    "store.before_migration": Crash(PLANE, when="first start"),
    "store.after_migration": Crash(PLANE, when="first start"),
    # --- a commit
    "store.before_commit": Crash(PLANE, (hops, streams), passing=4),
    "store.after_commit": Crash(PLANE, (hops, streams), passing=4),
    "store.after_settled": Crash(PLANE, (hops, streams), passing=4),
    "engine.after_record": Crash(PLANE, passing=8),
    "engine.before_publish": Crash(PLANE, passing=4),
    "engine.after_publish": Crash(PLANE, passing=4),
    # --- tasks come in, and end
    "submissions.received": Crash(PLANE, passing=5),
    "submissions.recorded": Crash(PLANE, passing=5),
    "submissions.acknowledged": Crash(PLANE, passing=5),
    "repeats.recorded": Crash(PLANE, (again,)),
    "repeats.noted": Crash(PLANE, (again,), passing=2),
    "recording.outcome_recorded": Crash(PLANE, passing=5),
    "recording.outcome_told": Crash(PLANE, passing=5),
    # --- what reaches a task from outside
    "signals.before_input": Crash(PLANE, (people,), passing=2),
    "signals.input_recorded": Crash(PLANE, (people,)),
    "signals.recorded": Crash(PLANE, (cancels,)),
    "signals.lost": Crash(PLANE, (held,), when="loss"),
    "children.called": Crash(PLANE, (calls,), passing=2),
    "children.submitted": Crash(PLANE, (calls,), passing=3),
    "children.parent_ended": Crash(PLANE, (calls,), passing=2),
    "memos.recorded": Crash(PLANE, (remembers,), passing=3),
    "signals.session_recorded": Crash(PLANE, (sessions,)),
    "claims.before_record": Crash(PLANE, (held,), settings={"claim_recorded_after_s": 0.1}),
    "claims.after_record": Crash(PLANE, (held,), settings={"claim_recorded_after_s": 0.1}),
    "services.recorded": Crash(PLANE),
    # --- streams
    "streams.received": Crash(PLANE, (streams,), passing=5),
    "streams.recorded": Crash(PLANE, (streams,), passing=5),
    "streams.acknowledged": Crash(PLANE, (streams,), passing=5),
    # --- contents
    "contents.after_part": Crash(PLANE, (files,), passing=3),
    "contents.after_finish": Crash(PLANE, (files,), passing=2),
    "transfers.part_sent": Crash(INSTANCE, (files,), passing=2),
    # --- the start, the sweeper, the end
    "plane.store_opened": Crash(PLANE, (held, hops), when="restart"),
    "sweeper.before_start": Crash(PLANE, (held, hops), when="restart"),
    "sweeper.after_start": Crash(PLANE, (held, hops), when="restart"),
    "sweeper.before_extend": Crash(PLANE, (held,), settings={"overdue_s": 0.1}),
    "sweeper.after_extend": Crash(PLANE, (held,), settings={"overdue_s": 0.1}),
    "plane.before_disconnect": Crash(PLANE, (held, hops), when="stop"),
    "plane.before_close": Crash(PLANE, (held, hops), when="stop"),
    "erasure.begun": Crash(PLANE, (erases,)),
    "erasure.removed": Crash(PLANE, (erases,)),
    "erasure.noted": Crash(PLANE, (erases,)),
    "retention.removed": Crash(PLANE, (ages,), settings={"retention_s": 0.2, "retention_look_s": 0.1}),
    # --- schedules
    "schedules.before_submit": Crash(PLANE, (recurs,), passing=2),
    "schedules.submitted": Crash(PLANE, (recurs,), passing=2),
    "schedules.recorded": Crash(PLANE, (recurs,), passing=2),
    # --- the control plane's end of its connections
    "gateway.hello": Crash(PLANE),
    "gateway.before_welcome": Crash(PLANE),
    "gateway.before_claim": Crash(PLANE, passing=3),
    "gateway.after_claim": Crash(PLANE, passing=3),
    "gateway.before_answer": Crash(PLANE, passing=4),
    "gateway.before_ack": Crash(PLANE, passing=4),
    "gateway.before_park": Crash(PLANE, (people,)),
    "gateway.parked": Crash(PLANE, (people,)),
    "gateway.asked": Crash(PLANE, (people,)),
    "gateway.before_send": Crash(PLANE, (hops, streams), passing=6),
    "clients.before_send": Crash(PLANE, (hops, streams), passing=6),
    "sockets.after_send": Crash(PLANE, (hops, streams), passing=9),
    # --- several control planes
    "leadership.claimed": Crash(PLANE, (all_held, hops), when="join"),
    "leadership.before_release": Crash(PLANE, (all_held, hops), when="give up"),
    "leadership.released": Crash(PLANE, (all_held, hops), when="give up"),
    "takeover.forgotten": Crash(PLANE, (all_held, hops), when="give up"),
    "takeover.gained": Crash(PLANE, (all_held, hops), when="take over"),
    "takeover.taken_up": Crash(PLANE, (all_held, hops), when="take over"),
    "gateway.adopted": Crash(PLANE, (all_held, hops), when="take over"),
    "relays.before_call": Crash(PLANE, (many_streams, hops), when="asked"),
    "relays.after_call": Crash(PLANE, (many_streams, hops), when="asked"),
    "relays.before_give": Crash(PLANE, (many_streams, hops), when="asked"),
    "forwarding.before_request": Crash(PLANE, (looked_at, people), when="asked"),
    "forwarding.after_request": Crash(PLANE, (looked_at, people), when="asked"),
    "upstreams.before_offer": Crash(INSTANCE, (all_held, hops), when="take over"),
    "upstreams.adopted": Crash(INSTANCE, (all_held, hops), when="take over"),
    # --- an instance
    "link.connected": Crash(INSTANCE),
    "link.greeted": Crash(INSTANCE),
    "link.before_send": Crash(INSTANCE, (hops, streams), passing=5),
    "link.after_send": Crash(INSTANCE, (hops, streams), passing=5),
    "runner.welcomed": Crash(INSTANCE),
    "runner.delivered": Crash(INSTANCE, passing=3),
    "runner.before_answer": Crash(INSTANCE, passing=4),
    "runner.after_answer": Crash(INSTANCE, passing=4),
    "runner.acknowledged": Crash(INSTANCE, passing=4),
    "runner.streamed": Crash(INSTANCE, (streams,), passing=10),
    "runner.events_committed": Crash(INSTANCE, (streams,), passing=5),
    "runner.asked": Crash(INSTANCE, (people,)),
    "runner.input": Crash(INSTANCE, (people,)),
    "runner.returned": Crash(INSTANCE, (calls,), passing=2),
    "runner.before_goodbye": Crash(INSTANCE, (held, hops), when="stop"),
    "runner.after_goodbye": Crash(INSTANCE, (held, hops), when="stop"),
    # --- a client
    "client.connected": Crash(CLIENT),
    "client.before_send": Crash(CLIENT, (hops, streams), passing=2),
    "client.after_send": Crash(CLIENT, (hops, streams), passing=1),
    "client.before_reply": Crash(CLIENT, (hops, streams), passing=3),
    "client.after_reply": Crash(CLIENT, (hops, streams), passing=3),
    "client.before_request": Crash(CLIENT, (people, cancels), passing=2),
    "client.after_request": Crash(CLIENT, (people, cancels), passing=3),
}
