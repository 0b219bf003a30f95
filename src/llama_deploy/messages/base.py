"""The envelope: what an orchestrator asks to be sent to a service.

A message is a request, not a delivery: the control plane gives it a step id, records it, and only then has it
carried. The wire format between processes is in `llama_deploy.messages.frames`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.types.core import ActionTypes, generate_id
from llama_deploy.types.options import StepOptions


class QueueMessageStats(BaseModel):
    """When a message was published and processed, as text; informative only."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    publish_time: str | None = None
    process_start_time: str | None = None
    process_end_time: str | None = None

    @staticmethod
    def timestamp_str(format: str = "%Y-%m-%d %H:%M:%S") -> str:  # noqa: A002 - the published name
        """The local time of day as text."""
        return datetime.now().astimezone().strftime(format)


class QueueMessage(BaseModel):
    """One message for the service named by `type`.

    `id_` identifies the message value, not the step: the control plane gives each message that it records a step id
    of its own, unless `step_id` names the step that is to be tried again.
    """

    model_config = ConfigDict(extra="ignore", defer_build=True)

    id_: str = Field(default_factory=generate_id)
    publisher_id: str = "default"
    data: dict[str, Any] = Field(default_factory=dict)
    action: ActionTypes | None = None
    stats: QueueMessageStats = Field(default_factory=QueueMessageStats)
    type: str = "default"
    """The service that the message is for."""
    step_id: str | None = None
    """The failed step that this message retries; None asks for a new step. The next attempt is sent `data` (and
    `options`) where there are any, else what was sent before."""
    tag: str | None = None
    """The orchestrator's own word for the step; it comes back on the result."""
    delay_s: float = 0.0
    """Seconds to wait after recording the message before it may be delivered."""
    options: StepOptions | None = None
    """Deadlines, retries, priority and key of this step alone; what it does not say, the task's options do."""
