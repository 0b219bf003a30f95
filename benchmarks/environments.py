"""One virtual environment per peer, made on demand from its pinned requirements.

They live in `.bench/` at the repository's root, a folder that ignores itself, so that no peer's dependencies ever meet
the project's own. Nothing is updated behind one's back: an environment is made again only when its requirements file
changes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import REPOSITORY, ProcessFailedError

FOLDER = REPOSITORY / ".bench"
MARK = "requirements.sha256"


def work_folder() -> Path:
    """`.bench/`, made if needed; what is in it is never committed."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    return FOLDER


def requirements_of(name: str) -> Path:
    """The pinned requirements of a peer."""
    return REPOSITORY / "benchmarks" / "peers" / name / "requirements.txt"


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, whether or not it exists yet."""
    return work_folder() / name / "bin" / "python"


def ensure(name: str) -> None:
    """Makes the environment unless it is there with these very requirements.

    Raises `ProcessFailedError` if pip fails.
    """
    requirements = requirements_of(name)
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    mark = work_folder() / name / MARK
    if mark.exists() and mark.read_text() == digest:
        return
    shutil.rmtree(work_folder() / name, ignore_errors=True)
    print(f"making the environment of {name} …", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(work_folder() / name)], check=True)
    install = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = subprocess.run([*install, "-r", str(requirements)], capture_output=True, text=True, check=False)
    if installed.returncode:
        raise ProcessFailedError(f"pip could not install {requirements.name} of {name}:\n{installed.stderr[-2000:]}")
    mark.write_text(digest)


def versions_of(name: str) -> dict[str, str]:
    """Package and version, as pinned."""
    lines = requirements_of(name).read_text().splitlines()
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {package.split("[")[0].strip(): version.strip() for package, version in pins}
