"""Checks that docs/settings.md says what the code says, and that no setting of the control plane is missing there."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path
from types import ModuleType

from llama_deploy.control_plane import EngineSettings

ROOT = Path(__file__).resolve().parent.parent.parent


def settings_page() -> ModuleType:
    """scripts/settings_page.py as a module."""
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "scripts" / "settings_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page().render(), "run `make docs`"


def test_every_setting_of_the_control_plane_is_read_somewhere() -> None:
    """A setting that nothing reads would be a promise that nobody keeps."""
    folder = ROOT / "src" / "llama_deploy"
    sources = [path for path in folder.rglob("*.py") if path.name != "settings.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert [field.name for field in fields(EngineSettings) if f".{field.name}" not in text] == []
