"""The published distribution beside this one: seen, and explained."""

from __future__ import annotations

from pathlib import Path

import pytest

import llama_deploy._lazy
from llama_deploy.errors import TwoDistributionsError
from llama_deploy.runtime import installed


def test_alone_there_is_nothing_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llama_deploy_engine-0.9.0.dist-info").mkdir()
    assert installed.two_distributions(tmp_path) is None
    installed.warn_of_two_distributions()
    assert capsys.readouterr().err == ""


def test_both_at_once_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_deploy-0.8.1.dist-info").mkdir()
    error = installed.two_distributions(tmp_path)
    assert error is not None
    assert error.code == "LD109"
    assert "llama_deploy-0.8.1.dist-info" in error.why
    assert "pip uninstall llama-deploy" in error.fix
    monkeypatch.setattr(installed, "two_distributions", lambda: error)
    with pytest.raises(TwoDistributionsError) as raised:
        _ = llama_deploy._lazy.lazy_names("llama_deploy", {"Gone": "llama_deploy.gone"})[0]("Gone")
    assert "pip uninstall llama-deploy" in raised.value.__notes__[0]
    assert isinstance(raised.value.__cause__, ImportError)
    installed.warn_of_two_distributions()
    assert capsys.readouterr().err.startswith(
        "Error LD109: llama-deploy and llama-deploy-engine are installed together"
    )


def test_an_import_that_fails_for_another_reason_fails_as_it_did() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"llama_deploy\.gone"):
        llama_deploy._lazy.lazy_names("llama_deploy", {"Gone": "llama_deploy.gone"})[0]("Gone")
