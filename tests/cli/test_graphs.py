"""`llamactl graph` and `llamactl tasks graph`: lines, SVG, Mermaid and JSON, once or until the task has ended."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.cli.conftest import Llamactl, ask_clerk

from llama_deploy.client import SyncClient

FILE = """\
name: demo
orchestrator:
  name: sequence
  parameters:
    nodes: [draft, {parallel: {nodes: {facts: check, style: check}}}]
orchestrators:
  quick: simple
services:
  draft: {import-path: "demo:draft"}
  check: {import-path: "demo:check"}
"""


def finished(ctl: Llamactl, *arguments: str) -> str:
    return ctl("run", *arguments, "-o", "name").out.strip()


def test_a_task_is_drawn_in_lines(ctl: Llamactl) -> None:
    drawn = ctl("tasks", "graph", finished(ctl, "flaky"))
    assert drawn.code == 0
    assert drawn.out.splitlines() == ["✓ flaky  done · attempt 2  -> end", "✓ end    done"]


def test_a_task_is_drawn_as_svg_and_mermaid_and_json(ctl: Llamactl, tmp_path: Path) -> None:
    task_id = finished(ctl, "shout", "-a", "text", "hi")
    file = tmp_path / "graph.svg"
    written = ctl("tasks", "graph", task_id, "--svg", str(file))
    assert (written.out, written.err) == ("", f"drawn in {file}\n")
    ET.fromstring(file.read_text(encoding="utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["graph.svg"]
    assert ctl("tasks", "graph", task_id, "--svg", "-").out == file.read_text(encoding="utf-8")
    assert ctl("tasks", "graph", task_id, "--mermaid").out.startswith("flowchart TD\n")
    assert ctl("tasks", "graph", task_id, "-o", "json").json["live"] is True


def test_what_it_refuses(ctl: Llamactl, tmp_path: Path) -> None:
    assert ctl("tasks", "graph", "none").code == 4
    assert ctl("tasks", "graph", "none", "--watch").code == 4
    assert ctl("tasks", "graph", "none", "--svg", "-", "--mermaid").code == 2
    assert ctl("tasks", "graph", "none", "--watch", "-o", "json").code == 2
    task_id = finished(ctl, "shout", "-a", "text", "hi")
    refused = ctl("tasks", "graph", task_id, "--svg", str(tmp_path / "no" / "graph.svg"))
    assert refused.code == 2
    assert "cannot be written" in refused.err


def test_watching_draws_until_the_end(ctl: Llamactl, server: str) -> None:
    task_id = ask_clerk(server)

    def answer() -> None:
        with SyncClient(server) as client:
            client.send_input(task_id, "yes")

    drawn_once = ctl("tasks", "graph", task_id)
    assert "? clerk  waits" in drawn_once.out
    answering = threading.Timer(0.2, answer)
    answering.start()
    drawn = ctl("tasks", "graph", task_id, "--watch")
    answering.join()
    assert drawn.code == 0
    assert drawn.out.split("\n\n")[-1].splitlines()[0].startswith("✓ clerk  done")
    assert ctl("tasks", "graph", task_id, "--watch").out.count("clerk") == 1  # once, where nothing goes on


def test_the_orchestrator_of_a_deployment_file(ctl: Llamactl, tmp_path: Path) -> None:
    file = tmp_path / "deployment.yml"
    file.write_text(FILE, encoding="utf-8")
    (tmp_path / "demo.py").write_text("def draft(): ...\ndef check(): ...\n", encoding="utf-8")
    drawn = ctl("graph", str(file))
    assert drawn.out.splitlines() == [
        "sequence",
        "draft          -> parallel",
        "parallel  all  -> end",
        "  facts   check",
        "  style   check",
        "end",
    ]
    assert ctl("graph", str(file), "--mermaid").out.count("subgraph") == 1
    assert "the task's service" in ctl("graph", str(file), "--orchestrator", "quick").out
    refused = ctl("graph", str(file), "--orchestrator", "quik")
    assert refused.code == 2
    assert "did you mean `quick`?" in refused.err
