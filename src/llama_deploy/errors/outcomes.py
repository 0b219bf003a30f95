"""How tasks and steps end badly, as it is recorded (LD5xx)."""

from __future__ import annotations

from typing import Any

from llama_deploy.errors.base import Category, LlamaDeployError


class TaskFailed(LlamaDeployError):  # noqa: N818 - the published word for an outcome
    """The task ended as failed, canceled or rejected. `error` is the remote error as recorded."""

    code, title, category = "LD501", "task failed", Category.FAILED

    def __init__(self, what: str, *, error: Any = None, task_id: str = "", **details: Any) -> None:
        super().__init__(what, **details)
        self.error = error
        self.task_id = task_id


class ServiceRaisedError(LlamaDeployError):
    """The service's own code raised an exception."""

    code, title, category = "LD502", "service raised", Category.FAILED


class RunTimeoutError(LlamaDeployError):
    """One attempt of a step ran longer than its run deadline (`run_timeout_s` of the service)."""

    code, title, category = "LD503", "run deadline exceeded", Category.FAILED


class ResultNotSerialisableError(LlamaDeployError):
    """The service returned, or streamed, a value that has no JSON form."""

    code, title, category = "LD504", "result not serialisable", Category.FAILED


class ArgumentsError(LlamaDeployError):
    """The task's input does not fit the service's parameters."""

    code, title, category = "LD505", "arguments do not fit", Category.INVALID


class AttemptsExhaustedError(LlamaDeployError):
    """The step's instances died or went silent as often as `attempts_max` allows."""

    code, title, category = "LD506", "attempts exhausted", Category.FAILED


class NoProgressError(LlamaDeployError):
    """The orchestrator sent nothing, nothing is open, and no result was recorded."""

    code, title, category = "LD507", "no progress", Category.FAILED


class TaskCanceledError(LlamaDeployError):
    """The task was canceled on request."""

    code, title, category = "LD508", "canceled", Category.FAILED


class ToolUnknownError(LlamaDeployError):
    """The tool service has no tool of this name."""

    code, title, category = "LD509", "tool not found", Category.INVALID


class NonRetryableError(LlamaDeployError):
    """Raise it in a service to fail the step at once: no attempt is made again, whatever the retry settings say."""

    code, title, category = "LD510", "not retryable", Category.FAILED


class OutputTypeError(LlamaDeployError):
    """The task completed, but its output is not of the type that the caller named with `output_type`."""

    code, title, category = "LD511", "output of another type", Category.INVALID


class QueueTimeoutError(LlamaDeployError):
    """No instance has taken the step within `queue_timeout_s` of its being due. Not tried again by itself."""

    code, title, category = "LD512", "waited too long for an instance", Category.FAILED


class TaskTimeoutError(LlamaDeployError):
    """The task had not ended within `total_timeout_s`; what ran of it was stopped."""

    code, title, category = "LD513", "task deadline exceeded", Category.FAILED


class OrchestrationFailedError(LlamaDeployError):
    """The orchestrator itself ended the task as failed: no quorum, no approval, a bound was reached."""

    code, title, category = "LD530", "orchestration failed", Category.FAILED


class WebhookFailedError(LlamaDeployError):
    """A webhook was not told of the end of a task; `retryable` says whether it is tried again."""

    code, title, category = "LD520", "webhook failed", Category.FAILED

    def __init__(self, what: str, *, retryable: bool = True, **details: Any) -> None:
        super().__init__(what, **details)
        self.retryable = retryable
        self.retry_after_s: float | None = None


class WebhookSignatureError(LlamaDeployError):
    """A request is not a webhook of the control plane whose secret this is, or it comes too late to be believed."""

    code, title, category = "LD521", "webhook not genuine", Category.UNAUTHORISED


class ArtifactNotFoundError(LlamaDeployError):
    """A content is spoken of that is not kept: it was never stored, or removed because no task needed it."""

    code, title, category = "LD522", "content not found", Category.NOT_FOUND


class ArtifactCorruptError(LlamaDeployError):
    """What was sent or read is not the content that its hash stands for. Nothing of it can be used."""

    code, title, category = "LD523", "content does not fit its hash", Category.INVALID


class StepCanceledError(LlamaDeployError):
    """The attempt is not wanted any more: its task was canceled or has ended, or the step went to another attempt."""

    code, title, category = "LD540", "attempt canceled", Category.FAILED


class WorkerDiedError(LlamaDeployError):
    """The worker process of a service (`process=True`) died of an attempt; `details["exit_code"]` says how."""

    code, title, category = "LD543", "worker process died", Category.FAILED


class HeartbeatTimeoutError(LlamaDeployError):
    """The service's code has shown no sign of life (`context.heartbeat`) for `heartbeat_timeout_s`."""

    code, title, category = "LD542", "no heartbeat", Category.FAILED


class CallConflictError(LlamaDeployError):
    """A step makes another call under a number or key than an earlier attempt did. Not tried again by itself."""

    code, title, category = "LD541", "call differs from the recorded one", Category.CONFLICT
    retryable = False


class MemoryMovedError(LlamaDeployError):
    """A service's memory has changed while an attempt worked from an earlier one; the attempt's answer is not taken.

    It is tried again as any failed attempt, from what is remembered now.
    """

    code, title, category = "LD544", "memory has changed", Category.CONFLICT


class MemoryBusyError(LlamaDeployError):
    """A service's memory is not cleared while a step is at work with it."""

    code, title, category = "LD545", "memory in use", Category.CONFLICT
