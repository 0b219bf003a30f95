"""Writes the lock files: what exactly is installed, by version and by hash, for every platform and Python.

`requirements.lock` is what the package runs on, `requirements-dev.lock` adds what working on it needs. The image of
`deploy/image` and each example that needs more have a lock beside their list. All agree on every version, for which an
`overrides.txt` may put aside what a library says about the versions of another. They name no index: what they are
resolved against is what pip on this machine is configured with. `make lock` runs this; `--upgrade` takes the newest
versions that pyproject.toml allows, else what is locked stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
CORE, DEV = Path("requirements.lock"), Path("requirements-dev.lock")


def main() -> None:
    """Resolve the core, then everything else under the core's versions."""
    os.chdir(ROOT)
    compile_lock(["pyproject.toml"], CORE)
    compile_lock(["pyproject.toml", "--group", "dev"], DEV, constraint=CORE)
    for wanted in [*sorted(Path("deploy/image").glob("*.txt")), *sorted(Path("examples").glob("*/requirements.txt"))]:
        compile_lock([str(wanted)], wanted.with_suffix(".lock"), constraint=DEV)


def compile_lock(sources: list[str], target: Path, *, constraint: Path | None = None) -> None:
    """Write `target` from `sources`; versions that `constraint` pins are taken from it."""
    command = [str(uv()), "pip", "compile", *sources, "--output-file", str(target), "--quiet", "--no-config"]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-emit-index-url"]
    if constraint is not None:
        command += ["--constraint", str(constraint)]
    overrides = Path(sources[0]).with_name("overrides.txt")
    if overrides.exists():
        command += ["--override", str(overrides)]
    if index := pip_index():
        command += ["--default-index", index]
    print(f"==> {target}", flush=True)
    subprocess.run([*command, *sys.argv[1:]], check=True)


def uv() -> Path:
    """The resolver, installed on first use into a folder of its own: nothing else needs it."""
    program = TOOLS / "bin" / "uv"
    if not program.exists():
        print("==> installing the resolver (uv) into .tools", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(TOOLS)], check=True)
        subprocess.run([str(TOOLS / "bin" / "pip"), "install", "-qq", "uv"], check=True)
    return program


def pip_index() -> str:
    """The index that pip on this machine uses in place of the public one, or nothing."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    indexes = {name: value for name, _, value in (line.partition("=") for line in listed.splitlines())}
    for name in (":env:.index-url", "install.index-url", "global.index-url"):
        if name in indexes:
            return indexes[name].strip("'\"")
    return ""


if __name__ == "__main__":
    main()
