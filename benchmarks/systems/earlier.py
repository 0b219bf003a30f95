"""Our own system as it was at an earlier commit, measured in turn with the working tree.

The same clients and services run both, with the same packages; only the source of `llama_deploy` differs. That answers
what a change costs, which two runs on two days do not.
"""

from __future__ import annotations

import compileall
import os
import subprocess

from benchmarks.environments import work_folder
from benchmarks.processes import REPOSITORY, ProcessFailedError
from benchmarks.systems.ours import Ours


class Earlier(Ours):
    """The source at one commit, taken out into `.bench/`."""

    name = "earlier"
    note = "the same as `ours` in everything but the source"

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.title = f"llama_deploy at {revision}"

    def prepare(self) -> None:
        """Take the source out of the repository. Raises `ProcessFailedError` for a revision that does not exist."""
        commit = self._git("rev-parse", "--verify", f"{self.revision}^{{commit}}").decode().strip()
        folder = work_folder() / f"source-{commit[:12]}"
        if not (folder / "src").is_dir():
            folder.mkdir(exist_ok=True)
            archive = self._git("archive", "--format=tar", commit, "src")
            subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
            compileall.compile_dir(folder / "src", quiet=1)
        self.environment = {"PYTHONPATH": os.pathsep.join([str(folder / "src"), str(REPOSITORY)])}

    def versions(self) -> dict[str, str]:
        return {**super().versions(), "llama_deploy": self.revision}

    def _git(self, *arguments: str) -> bytes:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=False)
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip()
            raise ProcessFailedError(f"there is no source of {self.revision!r}: {why}")
        return done.stdout
