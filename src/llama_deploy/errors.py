"""Every error that the system tells a person about: a code, what happened, why, and how to fix it.

One tree, one renderer. The command line prints `render()`, HTTP sends `to_problem()` as problem+json, and a log
line carries `code`. Domain code raises these; only the edges (HTTP, CLI) know how a `Category` becomes a status
or an exit code. `docs/errors.md` is checked against this module, so a new error without a page fails the build.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar


class Category(str, Enum):
    """What kind of refusal an error is; the edges map it to an HTTP status and an exit code."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    UNAUTHORISED = "unauthorised"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    UNAVAILABLE = "unavailable"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    FAILED = "failed"
    INTERNAL = "internal"


HTTP_STATUS: dict[Category, int] = {
    Category.INVALID: 400,
    Category.NOT_FOUND: 404,
    Category.CONFLICT: 409,
    Category.UNAUTHORISED: 401,
    Category.TOO_LARGE: 413,
    Category.TOO_MANY: 429,
    Category.UNAVAILABLE: 503,
    Category.UNREACHABLE: 502,
    Category.TIMEOUT: 504,
    Category.FAILED: 422,
    Category.INTERNAL: 500,
}
"""The HTTP status of each category (RFC 9110)."""

EXIT_CODE: dict[Category, int] = {
    Category.INVALID: 2,
    Category.NOT_FOUND: 4,
    Category.CONFLICT: 5,
    Category.UNAUTHORISED: 6,
    Category.TOO_LARGE: 2,
    Category.TOO_MANY: 3,
    Category.UNAVAILABLE: 3,
    Category.UNREACHABLE: 3,
    Category.TIMEOUT: 7,
    Category.FAILED: 1,
    Category.INTERNAL: 1,
}
"""The exit code of `llamactl` for each category; 0 is success and 130 an interrupt."""


class LlamaDeployError(Exception):
    """The root of every error of this package.

    `what` says in one sentence what happened, `why` the cause when it is known, `fix` what to do about it.
    `details` are JSON values for programs (the names that exist, the limit that was met).
    """

    code: ClassVar[str] = "LD900"
    title: ClassVar[str] = "internal error"
    category: ClassVar[Category] = Category.INTERNAL

    def __init__(self, what: str, *, why: str = "", fix: str = "", **details: Any) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.details = details

    def __str__(self) -> str:
        return self.what if not self.why else f"{self.what} ({self.why})"

    def render(self) -> str:
        """The error as a person reads it, the same on every surface."""
        lines = [f"Error {self.code}: {self.what}"]
        lines += [f"  {line}" for line in self.why.splitlines()]
        for index, line in enumerate(self.fix.splitlines()):
            lines.append(("  Fix:  " if index == 0 else "        ") + line)
        lines.append(f"  More: llamactl explain {self.code}")
        return "\n".join(lines)

    def to_problem(self) -> dict[str, Any]:
        """The error as problem+json (RFC 9457) with the members `code`, `what`, `why`, `fix`, `details`."""
        return {
            "type": f"urn:llama-deploy:error:{self.code}",
            "title": self.title,
            "status": HTTP_STATUS[self.category],
            "detail": str(self),
            "code": self.code,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
            "details": self.details,
        }


# --- LD1xx: files, settings, installation -------------------------------------------------------------------------


class DeploymentFileError(LlamaDeployError):
    """The deployment file is not valid; `details["problems"]` lists every problem with line and column."""

    code, title, category = "LD101", "invalid deployment file", Category.INVALID


class ImportPathError(LlamaDeployError):
    """An import path of a service or an orchestrator does not lead to a usable object."""

    code, title, category = "LD102", "import path does not load", Category.INVALID


class PortInUseError(LlamaDeployError):
    """Another program listens on the port."""

    code, title, category = "LD103", "port in use", Category.UNAVAILABLE


class SettingError(LlamaDeployError):
    """A setting (flag, environment variable, argument of a constructor) has a value that cannot be used."""

    code, title, category = "LD104", "invalid setting", Category.INVALID


class MissingExtraError(LlamaDeployError):
    """The feature needs an optional dependency that is not installed."""

    code, title, category = "LD105", "optional dependency missing", Category.INVALID


class UnsafeListenError(LlamaDeployError):
    """A server was asked to listen beyond loopback without protection."""

    code, title, category = "LD106", "refusing to listen beyond loopback", Category.INVALID


class ProjectExistsError(LlamaDeployError):
    """`llamactl init` was asked to write over files that exist."""

    code, title, category = "LD107", "files exist already", Category.CONFLICT


class ServiceStartError(LlamaDeployError):
    """A service of the deployment cannot be started, so nothing of the deployment is; its last lines say why."""

    code, title, category = "LD108", "service does not start", Category.INVALID


# --- LD2xx: tasks, sessions, services -----------------------------------------------------------------------------


class InvalidRequestError(LlamaDeployError):
    """The request cannot be understood; it names the field and what was expected. Nothing was changed."""

    code, title, category = "LD201", "invalid request", Category.INVALID


class ServiceUnknownError(LlamaDeployError):
    """Nobody serves the service that a task is for; `details["known"]` lists the names that are served."""

    code, title, category = "LD202", "service not served", Category.NOT_FOUND


class TaskNotFoundError(LlamaDeployError):
    """No task has this id."""

    code, title, category = "LD203", "task not found", Category.NOT_FOUND


class SessionNotFoundError(LlamaDeployError):
    """No session has this id."""

    code, title, category = "LD204", "session not found", Category.NOT_FOUND


class TaskConflictError(LlamaDeployError):
    """The task id or idempotency key was used before for a different request. The first task is untouched."""

    code, title, category = "LD205", "conflicting request", Category.CONFLICT


class TaskEndedError(LlamaDeployError):
    """The task has ended; what was asked for is possible only while it runs."""

    code, title, category = "LD206", "task has ended", Category.CONFLICT


class NoInputExpectedError(LlamaDeployError):
    """The task is not waiting for input, or not at the step that was named."""

    code, title, category = "LD207", "no input expected", Category.CONFLICT


class LimitExceededError(LlamaDeployError):
    """A limit was met; `details["setting"]` names the setting and `details["limit"]` its value.

    Settings of the control plane stand under `limits` in the deployment file, or in `Deployment(settings=...)`.
    """

    code, title, category = "LD208", "limit exceeded", Category.TOO_LARGE


class QueueFullError(LlamaDeployError):
    """The control plane has as much unfinished work as its settings allow; try again later."""

    code, title, category = "LD209", "too much work waiting", Category.TOO_MANY


class OrchestratorError(LlamaDeployError):
    """The orchestrator raised, or returned something that is not a decision. Nothing of it was recorded."""

    code, title, category = "LD210", "orchestrator failed", Category.INVALID


class ServiceNotFoundError(LlamaDeployError):
    """No service of this name was ever registered."""

    code, title, category = "LD211", "service not found", Category.NOT_FOUND


class NotRepeatableError(LlamaDeployError):
    """The task cannot be retried, replayed or forked like this: it has not ended, ended well, or has no such point."""

    code, title, category = "LD215", "cannot be done again like this", Category.CONFLICT


class DeadLetterNotFoundError(LlamaDeployError):
    """No step of this id was given up, or its dead letter was removed."""

    code, title, category = "LD216", "dead letter not found", Category.NOT_FOUND


class ScheduleNotFoundError(LlamaDeployError):
    """No schedule has this name."""

    code, title, category = "LD230", "schedule not found", Category.NOT_FOUND


class ScheduleOfFileError(LlamaDeployError):
    """The schedule stands in the deployment file, which would take back what was changed elsewhere."""

    code, title, category = "LD231", "schedule of the deployment file", Category.CONFLICT


# --- LD3xx: connections -------------------------------------------------------------------------------------------


class CannotReachError(LlamaDeployError):
    """Nothing answers at the control plane's address."""

    code, title, category = "LD301", "cannot reach the control plane", Category.UNREACHABLE


class ConnectionLostError(LlamaDeployError):
    """The connection to the control plane was lost and could not be made again in time."""

    code, title, category = "LD302", "connection lost", Category.UNREACHABLE


class WaitTimeoutError(LlamaDeployError):
    """The caller's waiting time is over. The task goes on; `details["task_id"]` says which."""

    code, title, category = "LD303", "timed out waiting", Category.TIMEOUT


class ProtocolError(LlamaDeployError):
    """The other side speaks another version of the protocol, or not this protocol at all."""

    code, title, category = "LD304", "protocol mismatch", Category.INVALID


class ShuttingDownError(LlamaDeployError):
    """The control plane is stopping and takes no new work; what it acknowledged is kept."""

    code, title, category = "LD305", "shutting down", Category.UNAVAILABLE


# --- LD4xx: the store ---------------------------------------------------------------------------------------------


class StoreUnavailableError(LlamaDeployError):
    """The store cannot be written or read now. What was acknowledged is safe; new work is refused meanwhile."""

    code, title, category = "LD401", "store unavailable", Category.UNAVAILABLE


class StoreLockedError(LlamaDeployError):
    """Another process has this store open; one writer at a time keeps it whole."""

    code, title, category = "LD402", "store in use", Category.CONFLICT


class StoreReadOnlyError(LlamaDeployError):
    """The store's file or folder cannot be written."""

    code, title, category = "LD403", "store not writable", Category.UNAVAILABLE


class StoreVersionError(LlamaDeployError):
    """The store was written by a later version of this program, or is not a store of this program."""

    code, title, category = "LD404", "store not readable by this version", Category.INVALID


class CommitConflictError(LlamaDeployError):
    """A guard of a commit failed: somebody else changed what it was based on. Nothing of it was recorded."""

    code, title, category = "LD405", "commit conflict", Category.CONFLICT


class StoreExistsError(LlamaDeployError):
    """A store was to be restored where there is one already; it is untouched."""

    code, title, category = "LD406", "store exists already", Category.CONFLICT


class BackupError(LlamaDeployError):
    """The file is not there, is damaged, or is no backup that this version can read. Nothing was changed."""

    code, title, category = "LD407", "backup not usable", Category.INVALID


class StoreKeyError(LlamaDeployError):
    """The store is encrypted and its key was not given, or another one was; or it is not encrypted and one was given.

    Nothing was changed.
    """

    code, title, category = "LD408", "store key missing or wrong", Category.INVALID


# --- LD5xx: how tasks and steps end badly -------------------------------------------------------------------------


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


def all_errors() -> list[type[LlamaDeployError]]:
    """Every error class of this module, by code."""
    found = [v for v in globals().values() if isinstance(v, type) and issubclass(v, LlamaDeployError)]
    return sorted(found, key=lambda cls: cls.code)
