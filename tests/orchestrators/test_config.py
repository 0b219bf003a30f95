"""The configuration class: arguments, environment, and the import paths under which programs know it."""

from __future__ import annotations

import pytest

from llama_deploy.orchestrators import SimpleOrchestrator, SimpleOrchestratorConfig
from llama_deploy.orchestrators import simple as simple_module


def test_defaults_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in SimpleOrchestratorConfig.model_fields:
        monkeypatch.delenv(f"SIMPLE_ORCHESTRATOR_{field.upper()}", raising=False)
    assert SimpleOrchestratorConfig().model_dump() == {"max_retries": 3, "final_message_type": None}


def test_the_environment_sets_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLE_ORCHESTRATOR_MAX_RETRIES", "7")
    monkeypatch.setenv("SIMPLE_ORCHESTRATOR_FINAL_MESSAGE_TYPE", "printer")
    assert SimpleOrchestratorConfig().model_dump() == {"max_retries": 7, "final_message_type": "printer"}
    assert SimpleOrchestratorConfig(max_retries=1).max_retries == 1


def test_a_configuration_makes_an_orchestrator() -> None:
    config = SimpleOrchestratorConfig(max_retries=2, final_message_type="printer")
    orchestrator = SimpleOrchestrator(**config.model_dump())
    assert (orchestrator.max_retries, orchestrator.final_message_type) == (2, "printer")


def test_it_is_the_same_class_under_every_path() -> None:
    assert simple_module.SimpleOrchestratorConfig is SimpleOrchestratorConfig
    assert "SimpleOrchestratorConfig" in dir(simple_module)
