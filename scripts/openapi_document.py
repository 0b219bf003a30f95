"""Writes docs/openapi.json: the HTTP API as a control plane describes it at /openapi.json.

For whoever generates a client, and so that a change of the API is seen in review. `make docs` runs this; a test fails
when the file is not what this would write.
"""

from __future__ import annotations

import json
from pathlib import Path

from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.http.app import build_app
from llama_deploy.state_stores import MemoryStore

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def render() -> str:
    """The document as it should be."""
    return json.dumps(build_app(ControlPlane(store=MemoryStore())).app.openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
