"""Holds the source to the house rules that a machine can check: the layers, a docstring per module, sizes.

What is checked here needs no running system. The contracts of the layers stand in pyproject.toml; a new package fails
the first test until it has been given its place there.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from llama_deploy.orchestrators import SimpleOrchestrator
from llama_deploy.orchestrators.described import CATALOGUE

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROGRAMS = sorted(
    path for folder in ("src", "tests", "examples", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")
)
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
ORCHESTRATOR_LINES_MAX = 149
LONGER_FOR_A_REASON: dict[str, str] = {}
"""`path` or `path:function`, and why it is longer than the rule allows."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_keep_to_the_layers() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([lint, "--no-logo", "--no-cache"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_module_opens_with_a_docstring() -> None:
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in PROGRAMS}
    assert [name for name, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))] == []


def too_long() -> Iterator[str]:
    """What is over its length and has no reason given, as `path[:function] (lines)`."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        lengths = {name_of(path): (len(text.splitlines()), FILE_LINES_MAX)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                lengths[f"{name_of(path)}:{node.name}"] = (lines, FUNCTION_LINES_MAX)
        for name, (lines, most) in lengths.items():
            if lines > most and name not in LONGER_FOR_A_REASON:
                yield f"{name} ({lines})"


def test_files_and_functions_are_short() -> None:
    assert list(too_long()) == []


def test_each_orchestrator_is_read_in_one_sitting() -> None:
    classes = {cls for cls, _ in CATALOGUE.values()} | {SimpleOrchestrator}
    lengths = {cls.__name__: len(Path(inspect.getfile(cls)).read_text("utf-8").splitlines()) for cls in classes}
    assert {name: lines for name, lines in lengths.items() if lines > ORCHESTRATOR_LINES_MAX} == {}
