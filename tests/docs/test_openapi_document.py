"""Checks that docs/openapi.json is the API that a control plane has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_document_is_current() -> None:
    spec = importlib.util.spec_from_file_location("openapi_document", ROOT / "scripts" / "openapi_document.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8") == module.render(), "run `make docs`"
