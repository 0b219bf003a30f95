"""Runs what the documentation shows, so that a reader who copies it gets what the page promises.

In README.md, the pages of docs/ and the READMEs of the examples a fence means, by its info string:

* `python` - a whole program; it runs, in a folder that the blocks of one page share, and must exit with 0;
* `python file=NAME` - a file that a later block or command of the page uses: written there and compiled, not run;
* `python no-run: REASON` - compiled only; the reason says why it cannot run here;
* `bash` - its syntax is checked, every `make` target and every `llamactl` command in it must exist;
* `yaml` - parsed; one with `services:` is a deployment file, so every key in it must be known;
* `json` - parsed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.docs.pages import PAGES, ROOT, Fence, anchors, fences, links
from tests.support import PROCESS_S

from llama_deploy.apiserver.deployment_file import load_deployment_file

PYTHON_PAGES = [page for page in PAGES if any(fence.language == "python" for fence in fences(page))]
OTHERS = [fence for page in PAGES for fence in fences(page) if fence.language in {"bash", "yaml", "json"}]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=name_of)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    for fence in fences(page):
        if fence.language != "python":
            continue
        compile(fence.text, fence.place, "exec")
        if named := re.fullmatch(r"file=([\w.-]+)", fence.note):
            (tmp_path / named[1]).write_text(fence.text, encoding="utf-8")
        elif fence.note:
            assert re.match(r"no-run: \S", fence.note), f"{fence.place}: {fence.note!r} is not a known note"
        else:
            run(fence, tmp_path)


def run(fence: Fence, folder: Path) -> None:
    """Run a block as a reader would: as a file of its own."""
    program = folder / f"line_{fence.line}.py"
    program.write_text(fence.text, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, program.name],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=PROCESS_S,
    )
    assert ran.returncode == 0, f"{fence.place}\n{ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("fence", OTHERS, ids=lambda fence: f"{fence.place}-{fence.language}")
def test_other_languages_are_well_formed(fence: Fence, tmp_path: Path) -> None:
    if fence.language == "bash":
        check_bash(fence)
    elif fence.language == "yaml":
        check_yaml(fence, tmp_path)
    else:
        json.loads(fence.text)


def check_bash(fence: Fence) -> None:
    checked = subprocess.run(["bash", "-n"], input=fence.text, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    chores = re.findall(r"(?m)^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(re.findall(r"\bmake ([a-z-]+)", fence.text)) <= set(chores)
    for command in sorted(set(re.findall(r"\bllamactl (?:-\S+ \S*://\S+ )?([a-z-]+)", fence.text))):
        asked = [sys.executable, "-c", "from llama_deploy.cli import main; main()", command, "--help"]
        known = subprocess.run(asked, check=False, capture_output=True, text=True)
        assert known.returncode == 0, f"{fence.place}: llamactl {command}\n{known.stderr}"


def check_yaml(fence: Fence, folder: Path) -> None:
    document = yaml.safe_load(fence.text)
    assert document is not None
    if isinstance(document, dict) and "services" in document:
        file = folder / "deployment.yml"
        file.write_text(fence.text, encoding="utf-8")
        load_deployment_file(file)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, fragment = link.partition("#")
        if ":" in path.partition("/")[0]:
            continue  # another site
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (fragment and target.suffix == ".md" and fragment not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fences_say_their_language(page: Path) -> None:
    assert [fence.place for fence in fences(page) if not fence.language] == []
