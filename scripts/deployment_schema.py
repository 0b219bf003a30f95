"""Writes docs/deployment.schema.json: the deployment file as JSON Schema, for editors that complete and check YAML.

`make docs` runs this, `llamactl schema` prints the same; a test fails when the file is not what this would write.
"""

from __future__ import annotations

import json
from pathlib import Path

from llama_deploy.apiserver import json_schema

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "deployment.schema.json"


def render() -> str:
    """The document as it should be."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
