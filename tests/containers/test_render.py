"""A deployment file rendered for Kubernetes: values that the chart takes, pods that run the images it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.containers.commands import check_command, documents
from tests.containers.test_chart import CHART, KUBERNETES, of_kind

from llama_deploy.apiserver.deployment_file import load_deployment_file
from llama_deploy.apiserver.kubernetes import Rendered, chart_values
from llama_deploy.apiserver.loader import load_service
from llama_deploy.errors import SettingError

helm = pytest.importorskip("helm_python", reason="Helm is not packaged for this platform")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

DIGEST = "a" * 64
FILE = f"""\
name: desk
store: postgresql://desk@db.example.com/desk
access:
  tokens:
    worker: {{scopes: [serve], env: WORKER_TOKEN}}
services:
  reader:
    import-path: reader:reader
    source: {{type: docker, name: "registry.example.com:5000/desk/reader:1.4"}}
    replicas: 3
    process-memory-mb-max: 512
    env: {{KEY: {{env: READER_KEY}}, PLACE: "${{PLACE}}", KIND: "${{KIND:-small}}"}}
  writer:
    import-path: writer:writer
    source: {{type: docker, name: "desk-writer@sha256:{DIGEST}"}}
  filer:
    import-path: filer:filer
    source: {{type: local, name: agents}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "agents").mkdir()
    path = tmp_path / "deployment.yml"
    path.write_text(FILE)
    return path


def rendered(path: Path, **options: Any) -> Rendered:
    return chart_values(load_deployment_file(path), path.read_bytes(), **options)


def objects_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    return [one for name, text in files.items() if name.endswith(".yaml") for one in documents(text)]


@pytest.mark.parametrize("version", KUBERNETES)
def test_service_pods_run_the_images_that_the_file_names(file: Path, tmp_path: Path, version: str) -> None:
    found = rendered(file, image="registry.example.com/desk:2", secret="desk-keys")
    objects = objects_of(yaml.safe_load(found.text))
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)
    (config,) = of_kind(objects, "ConfigMap")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "deployment.yml").write_text(config["data"]["deployment.yml"])
    images: dict[str, str] = {}
    for one in [*of_kind(objects, "StatefulSet"), *of_kind(objects, "Deployment")]:
        (container,) = one["spec"]["template"]["spec"]["containers"]
        name = check_command(container["args"], mounted / "deployment.yml")["only"]
        images[name] = container["image"]
        if name == "reader":
            assert one["spec"]["replicas"] == 3
            assert container["resources"]["limits"] == {"memory": "640Mi"}
        if name != "control-plane":
            assert container["envFrom"] == [{"secretRef": {"name": "desk-keys"}}]
    assert images == {
        "control-plane": "registry.example.com/desk:2",
        "reader": "registry.example.com:5000/desk/reader:1.4",
        "writer": f"desk-writer@sha256:{DIGEST}",
        "filer": "registry.example.com/desk:2",
    }
    assert "desk-keys: PLACE, READER_KEY, WORKER_TOKEN" in found.text


def test_within_an_image_the_code_is_where_its_processes_begin(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rendered(file, image="desk:2")
    mounted, app = tmp_path / "mounted", tmp_path / "app"
    for folder in (mounted, app / "agents"):
        folder.mkdir(parents=True)
    (mounted / "deployment.yml").write_text(yaml.safe_dump(found.values["deployment"]))
    code = "from llama_deploy import service\n@service\ndef {0}(text: str) -> str:\n    return text\n"
    (app / "reader.py").write_text(code.format("reader"))
    (app / "agents" / "filer.py").write_text(code.format("filer"))
    monkeypatch.chdir(app)
    deployment = load_deployment_file(mounted / "deployment.yml")
    for name in ("reader", "filer"):
        assert load_service(deployment.service(name), mounted).definition.service_name == name


def test_what_cannot_run_there_is_refused_before_anything_is_written(file: Path) -> None:
    with pytest.raises(SettingError, match="`filer` cannot run in Kubernetes without an image"):
        rendered(file)
    with pytest.raises(SettingError, match="no image with a tag"):
        rendered(file, image="desk")
    file.write_text(FILE.replace("desk@db", "desk:s3cret@db"))
    with pytest.raises(SettingError, match="has a password") as refused:
        rendered(file, image="desk:2")
    assert "s3cret" not in str(refused.value)
    (file.parent / "keys.env").write_text("A=1")
    file.write_text(FILE.replace("replicas: 3", "env-files: [keys.env]"))
    with pytest.raises(SettingError, match="cannot be taken along"):
        rendered(file, image="desk:2")
