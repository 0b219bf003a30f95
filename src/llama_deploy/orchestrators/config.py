"""The settings of the orchestrators, read from the environment.

Apart from the orchestrators themselves because reading settings costs more to import than all of them together.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class SimpleOrchestratorConfig(BaseSettings):
    """The parameters of a `SimpleOrchestrator`, from arguments or from the variables `SIMPLE_ORCHESTRATOR_*`."""

    model_config = SettingsConfigDict(env_prefix="SIMPLE_ORCHESTRATOR_")

    max_retries: int = 3
    final_message_type: str | None = None
