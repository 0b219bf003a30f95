"""Every lease, deadline and limit of the control plane, with its default.

One frozen value, so that a test or a deployment changes what it names and nothing else. The table in
`docs/settings.md` is checked against this module.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Numbers that govern the engine. Times are seconds, sizes bytes; each name carries its unit."""

    heartbeat_s: float = 2.5
    """How often an instance says that it lives."""
    lease_s: float = 10.0
    """An instance that was silent for this long is lost: its steps become the next attempt elsewhere."""
    reconnect_grace_s: float = 0.5
    """How long a dropped connection may take to come back before its instance is lost."""
    recovery_grace_s: float = 1.0
    """After a start: how long instances may take to reclaim what they hold before it is published again."""
    shard_lease_s: float = 6.0
    """Where control planes share a store: one that was not heard of for so long loses its sessions to the others."""
    service_return_s: float = 30.0
    """A service whose last instance was lost this recently is expected back, so that tasks for it are accepted."""
    release_finish_within_s: float = 600.0
    """How long the tasks of a release may finish on it once another one is current, where nobody says otherwise."""
    releases_finishing_max: int = 3
    """Releases that finish their tasks beside the current one; beyond it the oldest is retired."""
    claim_recorded_after_s: float = 1.0
    """A step that an instance holds for this long is marked as begun: a crash of everything then counts the attempt."""
    overdue_s: float = 30.0
    """A published step that nobody has claimed by then is published again."""
    overdue_s_max: float = 600.0
    """The pause between such repeated publications doubles up to this."""
    run_timeout_grace_s: float = 5.0
    """How long after the run deadline an instance may take to report it before the step is taken away."""
    cancel_grace_s: float = 4.0
    """How long code that is to stop may take before it is left behind; less than `run_timeout_grace_s`."""
    attempts_max: int = 10
    """Attempts of one step at most: those that failed and those that were lost, not those that were handed back."""
    decision_timeout_s: float = 30.0
    """Deadline of one call of an orchestrator that waits."""
    decision_retries_max: int = 3
    """How often a decision that raised or timed out is asked for again before the task fails."""
    decision_retry_s: float = 0.2
    """Pause before the first such repetition; it doubles."""
    leader_wait_s: float = 10.0
    """Where control planes share a store: how long a request waits while nobody leads its session."""
    peer_answer_s: float = 2.0
    """Where control planes share a store: how long each may take to say its part of an answer about all of them."""
    payload_bytes_max: int = 4_194_304
    """Size of an input, a message, a result or an event."""
    import_bytes_max: int = 67_108_864
    """Size of a file of exported tasks that is taken in."""
    remembered_per_step_max: int = 1_000
    """Values that the code of one step may have remembered (`once`)."""
    remembered_bytes_max: int = 1_048_576
    """Size of all values that the code of one step may have remembered; later attempts are given all of them."""
    memory_bytes_max: int = 1_048_576
    """Size of what one service remembers of one session, or of one task; an answer that leaves more fails the step."""
    call_depth_max: int = 32
    """How deep calls of services by services may go; a service that calls itself for ever ends here."""
    calls_per_task_max: int = 10_000
    """Calls of other services that the steps of one task may make."""
    payload_inline_bytes_max: int = 65_536
    """What is larger in a history entry is stored once under its hash, and referred to."""
    id_length_max: int = 200
    """Characters of a task id, a session id, an idempotency key or a service name."""
    tasks_unfinished_max: int = 200_000
    """Unfinished tasks in memory; above it new ones are refused until some end."""
    tasks_unfinished_per_session_max: int = 10_000
    """Unfinished tasks of one session; above it new ones of it are refused until some end."""
    queue_depth_max: int = 100_000
    """Steps that wait for one service; above it new tasks for it are refused until some have gone."""
    store_backlog_max: int = 20_000
    """Changes that wait to be written; above it new tasks are refused until the store has caught up."""
    history_entries_per_task_max: int = 250_000
    """Entries of one task's history; a decision beyond it fails the task, an input or a pause beyond it is refused."""
    services_max: int = 10_000
    """Services that are known; an instance that would register one more is refused."""
    instances_max: int = 10_000
    """Instances that are connected; one more is refused."""
    clients_max: int = 20_000
    """Connections of clients; one more is refused until one closes."""
    connections_per_address_max: int = 10_000
    """Connections from one address, of this machine's own any number; one more is refused until one closes."""
    streams_per_client_max: int = 10_000
    """Streams and histories that one connection of a client follows; one more is refused."""
    steps_per_instance_max: int = 10_000
    """Steps of one service in one instance; an instance whose service has a higher `concurrency` is refused."""
    steps_per_task_max: int = 100_000
    """Steps of one task; a decision that asks for more fails the task."""
    stream_events_per_task_max: int = 1_000_000
    """Stream events of one task; a step that streams more fails."""
    stream_chunk_bytes_max: int = 262_144
    """Bytes of stream events in one stored chunk; more go to the next one."""
    ended_tasks_cached_max: int = 2_000
    """Ended tasks whose outcome is kept in memory for clients that ask right afterwards."""
    sessions_cached_max: int = 2_000
    """Sessions without unfinished tasks whose shared state is kept in memory."""
    retention_s: float = 2_592_000.0
    """Ended tasks are removed so long after their end, with everything that was recorded of them; 0 keeps them."""
    ended_tasks_max: int = 1_000_000
    """Beyond so many ended tasks, those that were submitted first are removed; 0 keeps them."""
    dead_letter_retention_s: float = 7_776_000.0
    """A dead letter that was not sent again keeps its task for so long, then it is removed; 0 keeps it."""
    session_retention_s: float = 7_776_000.0
    """A session is removed, with its state, when it was created so long ago and none of its tasks is left; 0 keeps it.
    """
    unused_content_s: float = 3_600.0
    """Large contents that no task needs, and uploads that do not go on, are removed after so long."""
    retention_look_s: float = 60.0
    """How often what is not kept any more is looked for."""
    retention_batch_max: int = 50
    """Tasks that are removed in one commit."""
    artifact_bytes_max: int = 1_073_741_824
    """Size of one artifact."""
    artifacts_per_task_bytes_max: int = 10_737_418_240
    """Size of all artifacts that one task speaks of."""
    sweep_batch_max: int = 500
    """Overdue steps that one sweep handles."""
