"""Places in the product where one durable step ends and the next begins, where a test may make the process die.

`failpoint("name")` costs one dictionary test when nothing is armed. Tests arm a name with an action: a callable, or,
for a child process, the environment variable `LLAMA_DEPLOY_FAILPOINT=name[:n]`, which kills the process (exit code
197, nothing flushed) at the n-th passing of that place. A new place is a line in `FAILPOINTS`, the call, and a line in
`tests/processes/scenarios.py` that says in which work to crash there: a test fails where one of the three is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

FAILPOINTS: Mapping[str, str] = {
    # --- the store's file
    "store.file_created": "the file is there and empty",
    "store.before_migration": "a migration has not run",
    "store.after_migration": "a migration is committed, what comes after it has not begun",
    # --- a commit
    "store.before_commit": "the statements of a batch have run, their transaction is open",
    "store.after_commit": "a batch is committed and nobody knows",
    "store.after_settled": "whoever waited for a batch has been called",
    "engine.after_record": "an answer is recorded, nothing has followed from it",
    "engine.before_publish": "steps are recorded and not published",
    "engine.after_publish": "steps are published",
    # --- tasks come in, and end
    "submissions.received": "a submission is about to be decided on",
    "submissions.recorded": "a task is recorded and whoever submitted it does not know",
    "submissions.acknowledged": "whoever submitted a task is being told",
    "repeats.recorded": "a task made from another one is recorded, dead letters that it takes up do not say so",
    "repeats.noted": "dead letters say which task takes them up, and whoever asked for it does not know",
    "recording.outcome_recorded": "an outcome is recorded and nobody knows",
    "recording.outcome_told": "whoever waited for an outcome is being told",
    # --- what reaches a task from outside
    "signals.before_input": "a person's input has arrived and is not recorded",
    "signals.input_recorded": "a person's input is recorded, the step that asked for it has not got it",
    "gateway.asked": "a question to a person is recorded",
    "gateway.before_park": "a step wants to let go of its instance",
    "gateway.parked": "a step is parked, its instance does not know",
    "signals.recorded": "a cancellation or an input is recorded and whoever asked for it does not know",
    "signals.lost": "the loss of an attempt is recorded, the next one is not published",
    "children.called": "a call of a service is recorded, its task is not submitted",
    "children.submitted": "a called task is recorded and nobody waits for it",
    "children.parent_ended": "a task has ended, what it called is not canceled",
    "memos.recorded": "a value of a step's code is recorded and the code does not know",
    "signals.session_recorded": "a session is recorded and whoever created it does not know",
    "claims.before_record": "steps are held for longer than a moment, and that is not recorded",
    "claims.after_record": "it is recorded that steps have begun",
    "services.recorded": "a service's definition is recorded",
    # --- streams
    "streams.received": "stream events have arrived and are not recorded",
    "streams.recorded": "stream events are recorded, nobody has seen them and the instance does not know",
    "streams.acknowledged": "the instance is being told which stream events are recorded",
    # contents
    "contents.after_part": "a part of a content is in the store, others are to come",
    "contents.after_finish": "a content is whole in the store, and nobody knows",
    # --- the start, the sweeper, the end
    "plane.store_opened": "the store is open, nothing of it is known",
    "sweeper.before_start": "the deliveries of an earlier run are not due yet",
    "sweeper.after_start": "every delivery of an earlier run is due",
    "sweeper.before_extend": "overdue deliveries are found",
    "sweeper.after_extend": "overdue deliveries have got more time, and are not published again",
    "plane.before_disconnect": "nothing new is taken, everybody is still connected",
    "plane.before_close": "every connection is closed, the store is open",
    "erasure.begun": "it is recorded that a session is to be erased, nothing of it is gone",
    "erasure.removed": "nothing of a session is found any more, and nobody has said so",
    "erasure.noted": "it is recorded that a session was erased, its bytes are in the files",
    "retention.removed": "old tasks are removed, memory may know them",
    # --- schedules
    "schedules.before_submit": "a schedule's time has come, its task is not submitted",
    "schedules.submitted": "the task of a schedule's time is recorded, that the time is over is not",
    "schedules.recorded": "it is recorded that a schedule's time is over",
    # --- the control plane's end of its connections
    "gateway.hello": "an instance has said who it is and is not registered",
    "gateway.before_welcome": "an instance is registered and has not been welcomed",
    "gateway.before_claim": "the queue has given a step to an instance that has not claimed it",
    "gateway.after_claim": "an instance has claimed a step that was not sent to it",
    "gateway.before_answer": "an answer has arrived, nothing was done with it",
    "gateway.before_ack": "an answer is recorded, the instance does not know",
    "gateway.before_send": "operations for an instance have not been sent",
    "clients.before_send": "replies to a client have not been sent",
    "sockets.after_send": "a frame has been handed to its socket",
    # --- several control planes
    "leadership.claimed": "shards are claimed, and nobody acts on it",
    "leadership.before_release": "what belongs to shards is forgotten and settled, they are not given up",
    "leadership.released": "shards are given up, the others have not been told",
    "takeover.gained": "further shards are led, what is unfinished in them is not due",
    "takeover.taken_up": "what is unfinished in further shards falls due soon, nobody waits for that",
    "takeover.forgotten": "what others lead is forgotten, instances have not been told",
    "gateway.adopted": "steps that another control plane had sent are adopted, the instance does not know",
    "relays.before_call": "another control plane is about to be asked for a client",
    "relays.after_call": "another control plane has answered, the client does not know",
    "relays.before_give": "items of a stream have come from another control plane, the client has not got them",
    "forwarding.before_request": "a request is about to be passed on to another control plane",
    "forwarding.after_request": "another control plane answers a request, nothing was handed back",
    "upstreams.before_offer": "an instance is about to offer what it holds to another control plane",
    "upstreams.adopted": "another control plane has adopted a step, what is open of it was not said there",
    # --- an instance
    "link.connected": "an instance has a connection and has said nothing",
    "link.greeted": "an instance has said who it is",
    "link.before_send": "an instance has something to say",
    "link.after_send": "what an instance had to say has been handed to its socket",
    "runner.welcomed": "an instance is welcomed and has not repeated what is open",
    "runner.delivered": "an instance has got a step that has not begun to run",
    "runner.before_answer": "the work of a step is done, the answer does not exist",
    "runner.after_answer": "the answer of a step is in line to be sent",
    "runner.acknowledged": "an answer is acknowledged and not forgotten",
    "runner.streamed": "user code has streamed an event that was not sent",
    "runner.events_committed": "stream events are acknowledged and not forgotten",
    "runner.asked": "user code has asked a person, and nobody knows",
    "runner.input": "a person's input has arrived, user code has not got it",
    "runner.returned": "the outcome of a call has arrived, user code has not got it",
    "runner.before_goodbye": "an instance has drained and has not said so",
    "runner.after_goodbye": "an instance has said goodbye and its connection is open",
    "transfers.part_sent": "an instance has handed a part of a content to its connection",
    # --- a client
    "client.connected": "a client has a connection and has asked nothing",
    "client.before_send": "a client has something to ask",
    "client.after_send": "what a client has to ask has been handed to its socket",
    "client.before_reply": "replies have arrived, nobody has got them",
    "client.after_reply": "replies have been handed to who waits for them",
    "client.before_request": "a request over HTTP is not sent",
    "client.after_request": "the answer to a request over HTTP has arrived",
}
"""Every failpoint of the product, and what is true there. A test checks that each name is used, and that no other
name is."""

EXIT_CODE = 197

_armed: dict[str, Callable[[], None]] = {}


def failpoint(name: str) -> None:
    """A place where a crash is interesting. Does nothing unless a test armed `name`."""
    if _armed:
        action = _armed.get(name)
        if action is not None:
            action()


def arm(name: str, action: Callable[[], None]) -> None:
    """Run `action` whenever `name` is passed, until `disarm`."""
    if name not in FAILPOINTS:
        raise KeyError(name)
    _armed[name] = action


def disarm(name: str | None = None) -> None:
    """Forget one armed failpoint, or all of them."""
    if name is None:
        _armed.clear()
    else:
        _armed.pop(name, None)


def arm_from_environment() -> None:
    """Arm what `LLAMA_DEPLOY_FAILPOINT` asks for; called once by the entry point of every process."""
    setting = os.environ.get("LLAMA_DEPLOY_FAILPOINT")
    if not setting:
        return
    name, _, count = setting.partition(":")
    remaining = int(count or "1")

    def die() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining <= 0:
            os._exit(EXIT_CODE)

    arm(name, die)
