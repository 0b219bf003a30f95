"""Checks that docs/deployment.schema.json takes what the reader of deployment files takes, and refuses the rest."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from tests.docs.pages import ROOT, fences

from llama_deploy.apiserver.deployment_file import parse_deployment_file
from llama_deploy.cli.app import run_command
from llama_deploy.errors import DeploymentFileError

SCHEMA = json.loads((ROOT / "docs" / "deployment.schema.json").read_text(encoding="utf-8"))
FILES = sorted(
    path
    for path in (ROOT / "examples").rglob("*.y*ml")
    if "services:" in path.read_text(encoding="utf-8") and "name:" in path.read_text(encoding="utf-8")
)


def in_the_docs() -> list[str]:
    """The deployment files that the pages show."""
    found = [
        fence.text
        for page in sorted((ROOT / "docs").rglob("*.md"))
        for fence in fences(page)
        if fence.language == "yaml"
    ]
    return [text for text in found if text.lstrip("# \n").startswith("name:") or "\nname:" in f"\n{text}"]


def fits(document: Any) -> bool:
    return jsonschema_rs.is_valid(SCHEMA, document)


def test_the_document_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("deployment_schema", ROOT / "scripts" / "deployment_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "deployment.schema.json").read_text(encoding="utf-8") == module.render(), "run `make docs`"
    assert run_command(["schema"]) == 0
    assert capsys.readouterr().out == module.render()


def test_it_is_a_schema_itself() -> None:
    assert jsonschema_rs.meta.is_valid(SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_of_the_examples_fit(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path.parent, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    parse_deployment_file(path.read_bytes(), tmp_path / "copy" / path.name)
    jsonschema_rs.validate(SCHEMA, yaml.safe_load(path.read_text(encoding="utf-8")))


def test_the_files_of_the_pages_fit() -> None:
    texts = in_the_docs()
    assert len(texts) >= 3
    for text in texts:
        jsonschema_rs.validate(SCHEMA, yaml.safe_load(text))


@pytest.mark.parametrize(
    "wrong",
    [
        "{}",
        "services: {a: {import-path: 'a:b'}}",
        "name: demo",
        "name: demo\nservices: {}",
        "name: 'a b'\nservices: {a: {import-path: 'a:b'}}",
        "name: demo\nservices: {a: {import_path: 'a:b'}}",
        "name: demo\nservices: {a: {import-path: 'a'}}",
        "name: demo\nservices: {a: {import-path: 'a:b', replicas: 0}}",
        "name: demo\nservices: {a: {import-path: 'a:b', replicas: many}}",
        "name: demo\nservices: {a: {import-path: 'a:b', env: {'A B': c}}}",
        "name: demo\nservices: {a: {import-path: 'a:b', env: {A: {environment: c}}}}",
        "name: demo\nservices: {a: {import-path: 'a:b', env-files: x}}",
        "name: demo\nservices: {a: {import-path: 'a:b', source: {name: x}}}",
        "name: demo\nservices: {a: {import-path: 'a:b', source: {type: svn, name: x}}}",
        "name: demo\nservices: {a: {import-path: 'a:b', source: {type: git, name: 'https://h/x', commit: main}}}",
        "name: demo\nservices: {a: {import-path: 'a:b', python-dependencies: ['--index-url=x']}}",
        "name: demo\ncontrol-plane: {port: 70000}\nservices: {a: {import-path: 'a:b'}}",
        "name: demo\ncontrol-plane: {prot: 8000}\nservices: {a: {import-path: 'a:b'}}",
        "name: demo\nservices: {a: {import-path: 'a:b'}}\nservice: {}",
    ],
)
def test_what_the_schema_refuses_the_reader_refuses(wrong: str, tmp_path: Path) -> None:
    assert not fits(yaml.safe_load(wrong))
    with pytest.raises(DeploymentFileError):
        parse_deployment_file(wrong.encode(), tmp_path / "deployment.yml")
