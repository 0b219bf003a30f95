"""Refusals of requests about tasks, sessions, services and schedules (LD20x to LD23x)."""

from __future__ import annotations

from llama_deploy.errors.base import Category, LlamaDeployError


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


class LedgerNotFoundError(LlamaDeployError):
    """The task's orchestrator keeps no list of this name, or not yet, or not any more."""

    code, title, category = "LD217", "ledger not found", Category.NOT_FOUND


class ScheduleNotFoundError(LlamaDeployError):
    """No schedule has this name."""

    code, title, category = "LD230", "schedule not found", Category.NOT_FOUND


class ScheduleOfFileError(LlamaDeployError):
    """The schedule stands in the deployment file, which would take back what was changed elsewhere."""

    code, title, category = "LD231", "schedule of the deployment file", Category.CONFLICT


class NotOfferedError(LlamaDeployError):
    """The request has a form that earlier versions understood, and asks for what is not offered here."""

    code, title, category = "LD241", "not offered", Category.INVALID
