"""Holds what a user installs and imports to its budgets, by counting packages, bytes and modules, never by a clock.

The lock files are read as they are, the sizes are those of what is installed beside this test, and imports are
counted in a fresh interpreter.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CORE, DEV = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"
LOCKS = [
    CORE,
    DEV,
    *sorted((ROOT / "examples").glob("*/requirements.lock")),
    *sorted((ROOT / "deploy/image").glob("*.lock")),
]

PACKAGES_MAX = 40
INSTALLED_BYTES_MAX = 60_000_000

LIBRARY_MODULES_MAX = 50
LIBRARY_MUST_NOT_IMPORT = {
    *("asyncio", "click", "fastapi", "httpx2", "llama_index_instrumentation", "msgspec", "pydantic", "sqlite3"),
    *("starlette", "uvicorn", "uvloop", "websockets", "workflows", "yaml"),
}

HELP_MODULES_MAX = 160
HELP_MUST_NOT_IMPORT = LIBRARY_MUST_NOT_IMPORT - {"click"}


def locked(lock: Path) -> dict[str, Requirement]:
    """What the lock file installs on this platform and Python, by name."""
    pins = (Requirement(line.split("\\")[0].strip()) for line in lock.read_text().splitlines() if "==" in line)
    return {canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()}


def imported_by(program: str) -> set[str]:
    """The modules that a fresh interpreter imports for `program`, beside those that it starts with."""
    count = "import json, sys; sys.stderr.write(json.dumps(sorted(set(sys.modules) - before)))"
    code = f"import sys; before = set(sys.modules)\ntry:\n    {program}\nfinally:\n    {count}"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(ran.stderr))


def test_the_core_stays_within_its_packages_and_bytes() -> None:
    packages = locked(CORE)
    assert len(packages) <= PACKAGES_MAX
    sizes = {name: installed_bytes(name) for name in packages}
    assert sum(sizes.values()) <= INSTALLED_BYTES_MAX, sorted(sizes.items(), key=lambda item: -item[1])


def installed_bytes(name: str) -> int:
    """The size of an installed distribution's files, without bytecode."""
    files = [file for file in distribution(name).files or [] if file.suffix != ".pyc"]
    return sum(Path(str(file.locate())).stat().st_size for file in files)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lock_files_pin_by_hash_and_name_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "--index" not in text
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", text)[1:]
    assert entries
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_lock_files_agree_and_cover_what_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {CORE: project["project"]["dependencies"], DEV: project["dependency-groups"]["dev"]}
    for lock, wanted in asked.items():
        pins = locked(lock)
        for requirement in map(Requirement, wanted):
            pin = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), requirement
    core = locked(CORE)
    for lock in LOCKS:
        others = locked(lock)
        assert {name: others[name].specifier for name in core.keys() & others.keys()} == {
            name: core[name].specifier for name in core.keys() & others.keys()
        }
    assert core.keys() <= locked(DEV).keys()


COMES_WITH = {
    "aiormq": "aio-pika",  # whose exceptions and channels those are
    "botocore": "aiobotocore",
    "langchain_core": "langgraph",
    "llama_index": "llama-index-workflows",  # only where the user has its core, for tools of it
}
"""Modules of what another package is made of, or made for."""


def test_what_the_source_imports_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [wanted for extra in project["optional-dependencies"].values() for wanted in extra]
    asked = {canonicalize_name(Requirement(wanted).name) for wanted in [*project["dependencies"], *extras]}
    provided_by = packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "src").rglob("*.py")
        for name in imported_names(path) - sys.stdlib_module_names - {"llama_deploy"}
        if COMES_WITH.get(name) not in asked
        and not asked & {canonicalize_name(provider) for provider in provided_by.get(name, [])}
    }
    assert missing == set()


def imported_names(path: Path) -> set[str]:
    """The top-level names of what a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_wheel_holds_the_package_its_types_and_its_sql(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("llama_deploy_engine-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    kept = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    kept = {name for name in kept if "__pycache__" not in name and ".egg-info" not in name}
    assert "llama_deploy/py.typed" in packed
    assert {name for name in packed if ".dist-info/" not in name} == kept
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed)


def test_importing_the_library_imports_next_to_nothing() -> None:
    modules = imported_by("import llama_deploy")
    assert modules & LIBRARY_MUST_NOT_IMPORT == set()
    assert len(modules) <= LIBRARY_MODULES_MAX, sorted(modules)


def test_the_help_imports_click_and_next_to_nothing_else() -> None:
    modules = imported_by("sys.argv = ['llamactl', '--help']; from llama_deploy.cli import main; main()")
    assert modules & HELP_MUST_NOT_IMPORT == set()
    assert len(modules) <= HELP_MODULES_MAX, sorted(modules)
