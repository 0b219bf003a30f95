"""Checks that docs/errors.md says what the code says, about every error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from llama_deploy.errors import LlamaDeployError, all_errors

ROOT = Path(__file__).resolve().parent.parent.parent


def rendered_page() -> str:
    """What scripts/errors_page.py would write."""
    spec = importlib.util.spec_from_file_location("errors_page", ROOT / "scripts" / "errors_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    render: Callable[[], str] = module.render
    return render()


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == rendered_page(), "run `make docs`"


def test_every_error_has_a_section_of_its_own() -> None:
    headings = [line for line in rendered_page().splitlines() if line.startswith("### ")]
    assert headings == [f"### {error.code} {error.title}" for error in all_errors()]


def test_every_error_of_a_part_is_imported_from_the_package() -> None:
    defined: set[type[LlamaDeployError]] = {LlamaDeployError}
    while more := {sub for cls in defined for sub in cls.__subclasses__()} - defined:
        defined |= more
    assert {cls for cls in defined if cls.__module__.startswith("llama_deploy.errors")} == set(all_errors())
