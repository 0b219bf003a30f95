"""The programs of examples/patterns, each run as a reader would run it: one command, no key, the promised outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.docs.pages import ROOT
from tests.support import PROCESS_S

PATTERNS = ROOT / "examples" / "patterns"
SVG = "{http://www.w3.org/2000/svg}"

OUTCOMES = {
    "sequence.py": 'completed: {"headline": "All to know about tides", "short": true}',
    "parallel.py": "completed: spelling: teh; length: incontrovertibly",
    "map_reduce.py": "completed: 18",
    "graph.py": "completed: A text about tides and more (with a picture of tides)",
    "router.py": "completed: The sky says: When does the rain come? Tomorrow.",
    "handoff.py": "completed: It was paid in May (a customer asks: Was my bill paid?; thanks to billing).",
    "group_chat.py": "completed: the tide: The tide is high. (after 6 turns)",
    "planner.py": "completed: Today the tide stands at 3.2 m.",
    "gate.py": "completed: paid by transfer",
    "wrappers.py": "completed: 42",
    "saga.py": "failed: the museum of Bergen is closed",
}


def run(name: str, *arguments: str, **environment: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, PATTERNS / name, *arguments],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
        timeout=PROCESS_S,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_every_program_is_run_here_and_in_the_list() -> None:
    names = sorted(path.name for path in PATTERNS.glob("*.py") if path.name not in ("show.py", "model.py"))
    assert names == sorted(OUTCOMES)
    page = (PATTERNS / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in page for name in names)


@pytest.mark.parametrize("name", OUTCOMES)
def test_it_ends_as_it_promises_with_a_picture_and_a_timeline(name: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    printed = run(name, "--svg", str(picture), "--pictures", str(tmp_path), OPENAI_API_KEY="")
    assert printed[0] == "flowchart TD"
    assert OUTCOMES[name] in printed
    assert printed[-1].startswith("░ waited  █ ran")
    assert picture.read_text(encoding="utf-8").startswith("<svg ")
    for kind in ("graph", "timeline"):
        file = f"{name.removesuffix('.py')}-{kind}.svg"
        kept = (PATTERNS / "pictures" / file).read_text(encoding="utf-8")
        assert shown(kept) == shown((tmp_path / file).read_text(encoding="utf-8")), f"draw it anew: {file}"
        assert f"(pictures/{file})" in (PATTERNS / "README.md").read_text(encoding="utf-8")


def shown(drawing: str) -> list[str]:
    """What a picture shows, without places and times: the nodes with their states, or the rows of a timeline."""
    root = ET.fromstring(drawing)
    nodes = [g for g in root.iter(f"{SVG}g") if (g.get("class") or "").startswith("node")]
    if nodes:
        return [f"{g.get('class')} {g.findtext(f'{SVG}title')}" for g in nodes]
    return sorted(text.text or "" for text in root.iter(f"{SVG}text") if text.get("class") is None)


def test_with_a_key_the_real_model_is_asked() -> None:
    asked: list[str] = []

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(f"{self.path} {self.headers['Authorization']} {body['messages'][0]['content']}")
            answer = json.dumps({"choices": [{"message": {"content": "sea"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            del format, args

    server = HTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        printed = run("router.py", OPENAI_API_KEY="secret", OPENAI_BASE_URL=url)
    finally:
        server.shutdown()
        server.server_close()
    assert "completed: The sea says: When does the rain come? Ask the moon." in printed
    assert asked == ["/v1/chat/completions Bearer secret One word of ['sea', 'weather'] for: When does the rain come?"]


def test_each_folder_that_is_taken_along_has_the_same_model() -> None:
    """A folder of examples stands by itself, so each has a copy; they must not drift apart."""
    copies = sorted(PATTERNS.parent.glob("*/model.py"))
    assert len(copies) > 1
    assert len({copy.read_text(encoding="utf-8") for copy in copies}) == 1
