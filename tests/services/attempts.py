"""An attempt of a step as a test sees it: the context that a service gets, and what came out of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from llama_deploy.services import StepContext


class Attempt(StepContext):
    """A context that keeps what was streamed and asked, where the runner would send it."""

    def __init__(
        self,
        input: Any = "{}",
        *,
        action: str = "new_task",
        data: dict[str, Any] | None = None,
        inputs: Sequence[Any] = (),
        snapshot: bytes | None = None,
        number: int = 1,
    ) -> None:
        text = input if isinstance(input, str) else json.dumps(input)
        self.events: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for value in inputs:
            queue.put_nowait(value)
        super().__init__(
            step_id="task:1",
            attempt=number,
            task_id="task",
            session_id="session",
            service="service",
            action=action,
            data=data if data is not None else {"task": {"input": text, "task_id": "task"}, "state": {}},
            emit=lambda event: self.events.append(json.loads(event)),
            ask=self.asked.append,
            inputs=queue,
            inputs_given=len(inputs),
            snapshot=snapshot,
            run_timeout_s=60.0,
        )
