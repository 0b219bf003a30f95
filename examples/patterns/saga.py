"""Saga: a trip is booked step by step; when the museum is closed, what was booked is canceled, the latest first."""

from __future__ import annotations

from typing import Any

from show import show

from llama_deploy import NonRetryableError, service
from llama_deploy.orchestrators import Saga


@service
def train(input: str, done: dict[str, Any]) -> str:
    """Books a train."""
    return f"train to {input}, seat {len(done) + 1}"


@service
def hotel(input: str, done: dict[str, Any]) -> str:
    """Books a room."""
    return f"room in {input}, after {done['train']}"


@service
def museum(input: str, **_: Any) -> str:
    """Closed."""
    raise NonRetryableError(f"the museum of {input} is closed")


@service
def cancel(output: str, **_: Any) -> str:
    """Cancels what was booked."""
    return f"canceled: {output}"


policy = Saga(train=("train", "cancel"), hotel=("hotel", "cancel"), museum=("museum", None))
show(policy, [train, hotel, museum, cancel], "Bergen")
