"""Whose word counts on another attempt, and how many there may be; nothing here changes anything.

Failures and losses are counted apart: a service that raises is no reason to believe less in its machines. What an
instance hands back on purpose counts as neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llama_deploy.types import RetryPolicy, TaskResult
from llama_deploy.types.retry import asked_for_s

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine
    from llama_deploy.control_plane.tasks import OpenStep, TaskEntry

Next = float | Literal["pause"] | None
"""What follows a failed attempt: another one after so many seconds, a pause of the task until somebody has it go on,
or nothing."""


def retry_policy(engine: Engine, entry: TaskEntry, step: OpenStep) -> RetryPolicy | None:
    """The retry policy that somebody gave: for the step, else for the task, else for the service; else `None`."""
    if step.options is not None or entry.definition.options is not None:
        asked: RetryPolicy | None = entry.option(step, "retry")
        if asked is not None:
            return asked
    definition = engine.registry.definition(step.service)
    return definition.retry if definition is not None else None


def worn_out(engine: Engine, step: OpenStep) -> bool:
    """Whether the present attempt is the last that `attempts_max` allows."""
    return step.failures + step.losses + 1 >= engine.settings.attempts_max


def after_failure(engine: Engine, entry: TaskEntry, step: OpenStep, result: TaskResult) -> Next:
    """What follows a failure by the retry policy that counts.

    Where an orchestrator handles failures and nobody gave a policy, it is asked; and it is asked about what a policy
    has given up, which is marked as not retryable for it.
    """
    given = retry_policy(engine, entry, step)
    handled = entry.policy.handles_failures
    if given is None and handled and entry.policy.decides_retries:
        return None
    policy = given or RetryPolicy()
    error = result.error
    delay_s = policy.delay_for(error, step.failures + 1)
    if delay_s is not None and not worn_out(engine, step):
        return engine.jitter(delay_s, policy.jitter, least_s=asked_for_s(error))
    if policy.when_exhausted == "pause" and (error is None or not policy.is_final(error)):
        return "pause"
    if handled and error is not None:
        result.error = error.model_copy(update={"retryable": False})
    return None


def pauses_when_worn_out(engine: Engine, entry: TaskEntry, step: OpenStep) -> bool:
    """Whether the task pauses where the step would fail because its instances were lost too often."""
    policy = retry_policy(engine, entry, step)
    return policy is not None and policy.when_exhausted == "pause"


def attempts_so_far(step: OpenStep) -> str:
    """How often a step failed and was lost, in words; empty where neither has happened."""
    counts = [(step.failures, "failed"), (step.losses, "lost")]
    return ", ".join(f"{count} {word}" for count, word in counts if count)
