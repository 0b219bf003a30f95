"""The public names of the packages, and what importing them loads: counted in modules, never in milliseconds."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llama_deploy
from tests.support import PROCESS_S

LAZY_PACKAGES = [
    "llama_deploy",
    "llama_deploy.types",
    "llama_deploy.orchestrators",
    "llama_deploy.orchestrators.simple",
]

HEAVY = {
    "asyncio",
    "fastapi",
    "httpx2",
    "msgspec",
    "multiprocessing",
    "pydantic_settings",
    "sqlite3",
    "uvicorn",
    "workflows",
}
"""What data and decisions need none of."""


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after `statement` and had not before."""
    program = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PROCESS_S)
    return set(run.stdout.split())


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] == "llama_deploy"}


def test_importing_the_package_loads_only_the_table_of_names() -> None:
    loaded = loaded_by("import llama_deploy")
    assert ours(loaded) == {"llama_deploy", "llama_deploy._lazy", "llama_deploy._version"}
    assert not loaded & {*HEAVY, "pydantic"}


def test_importing_types_loads_pydantic_and_the_core_models_and_builds_nothing() -> None:
    loaded = loaded_by("import llama_deploy.types")
    packages = {"llama_deploy", "llama_deploy._lazy", "llama_deploy._version"}
    packages |= {name for name in ours(loaded) if name.startswith("llama_deploy.errors")}
    parts = {f"llama_deploy.types{part}" for part in ("", ".core", ".limits", ".options", ".retry", ".state")}
    assert ours(loaded) == packages | parts
    assert not loaded & HEAVY
    unbuilt = loaded_by("import llama_deploy.types as t; assert not t.TaskDefinition.__pydantic_complete__")
    assert ours(unbuilt) == ours(loaded)


def test_importing_orchestrators_adds_only_the_envelope() -> None:
    added = loaded_by("import llama_deploy.orchestrators") - loaded_by("import llama_deploy.types")
    assert ours(added) - {"llama_deploy._published"} == {
        "llama_deploy.messages",
        "llama_deploy.messages.base",
        "llama_deploy.orchestrators",
        "llama_deploy.orchestrators.base",
        "llama_deploy.orchestrators.simple",
        "llama_deploy.orchestrators.utils",
    }
    assert not added & HEAVY


def test_a_name_is_loaded_when_it_is_used() -> None:
    loaded = loaded_by("from llama_deploy.orchestrators.simple import SimpleOrchestratorConfig")
    assert {"llama_deploy.orchestrators.config", "pydantic_settings"} <= loaded
    loaded = loaded_by("from llama_deploy import LlamaDeployError")
    assert "llama_deploy.errors" in loaded
    assert "pydantic" not in loaded


@pytest.mark.parametrize("package", LAZY_PACKAGES)
def test_the_lazy_table_says_what_type_checkers_are_told(package: str) -> None:
    """The `TYPE_CHECKING` block and the table beside it name the same homes."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    table = next(node for node in ast.walk(block.orelse[0]) if isinstance(node, ast.Dict))
    assert ast.literal_eval(table) == told


@pytest.mark.parametrize("package", [*LAZY_PACKAGES, "llama_deploy.messages"])
def test_every_public_name_resolves_and_is_listed(package: str) -> None:
    module = importlib.import_module(package)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []
    assert set(module.__all__) <= set(dir(module))
    assert sorted(module.__all__) == sorted(set(module.__all__))


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'llama_deploy' has no attribute 'Nonsense'"):
        llama_deploy.Nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_a_resolved_name_stays() -> None:
    assert llama_deploy.TaskDefinition is llama_deploy.TaskDefinition
    assert "TaskDefinition" in vars(llama_deploy)


def test_the_version_is_one_of_pep_440() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?(\.dev\d+)?", llama_deploy.__version__)
