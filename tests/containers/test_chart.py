"""The Helm chart, rendered by Helm itself: valid for Kubernetes, with commands, probes and names that there are."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.containers.commands import ROOT, check_command, documents, parsed
from tests.support import PROCESS_S, eventually
from tests.support.certificates import Authority
from tests.support.ports import free_port

helm = pytest.importorskip("helm_python", reason="Helm is not packaged for this platform")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

CHART = ROOT / "deploy" / "helm" / "llama-deploy"
HEALTH_CHECK = ROOT / "deploy" / "image" / "healthcheck.py"
ROUTES = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
KUBERNETES = ("1.25", "1.34")
FILE = {"name": "demo", "services": {"shout": {"import-path": "services:shout"}, "co_unt": {"import-path": "s:c"}}}

SMALL: dict[str, Any] = {"deployment": FILE, "controlPlane": {"allowWithoutTokens": True}}
LARGE: dict[str, Any] = {
    "deployment": FILE
    | {
        "message-queue": {"url": {"env": "BROKER_URL"}},
        "access": {
            "tokens": {
                "planes": {"scopes": ["admin"], "env": "LLAMA_DEPLOY_TOKEN"},
                "worker": {"scopes": ["serve"], "env": "WORKER_TOKEN"},
            }
        },
    },
    "store": {"url": "postgresql://demo@db.example.com/demo"},
    "secret": {
        "values": {
            "PGPASSWORD": "s3cret",
            "BROKER_URL": "nats://me:s3cret@nats",
            "WORKER_TOKEN": "s3cret",
            "LLAMA_DEPLOY_TOKEN": "s3cret",
        }
    },
    "serviceToken": {"key": "WORKER_TOKEN"},
    "controlPlane": {"replicas": 3, "drainTimeoutSeconds": 20, "messageQueue": "nats://nats:4222"},
    "services": [
        {"name": "shout", "replicas": 2, "env": {"GREETING": "hello"}, "secretName": "keys"},
        {"name": "co_unt", "image": {"repository": "mine", "tag": "7"}, "autoscaling": {"maxReplicas": 5}},
    ],
    "networkPolicy": {"from": [{"podSelector": {"matchLabels": {"app": "front"}}}]},
}
PAGE = (ROOT / "docs" / "guide" / "containers.md").read_text()
SHOWN: dict[str, Any] = yaml.safe_load(PAGE.partition("```yaml\n")[2].partition("```")[0])
SHOWN["deployment"] |= {"services": FILE["services"]}  # the page leaves them out
TLS: dict[str, Any] = LARGE | {"tls": {"secretName": "demo-tls"}}
MUTUAL: dict[str, Any] = LARGE | {"tls": {"secretName": "demo-tls", "clientSecretName": "demo-clients"}}
VALUES = {"small": SMALL, "large": LARGE, "TLS": TLS, "mutual TLS": MUTUAL, "as the page shows it": SHOWN}


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    return [one for name, text in files.items() if name.endswith(".yaml") for one in documents(text)]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in objects if one["kind"] in {"StatefulSet", "Deployment"}]


def test_helm_s_own_linter_finds_nothing() -> None:
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [one["error"] for one in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_is_valid(values: dict[str, Any], version: str) -> None:
    objects = rendered(values)
    assert objects
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_command_is_one_of_the_program(values: dict[str, Any], tmp_path: Path) -> None:
    objects = rendered(values)
    (config,) = of_kind(objects, "ConfigMap")
    (tmp_path / "deployment.yml").write_text(config["data"]["deployment.yml"])
    served = []
    for pod in pods(objects):
        (container,) = pod["containers"]
        *arguments, file = container["args"]
        assert any(mount["mountPath"] == str(Path(file).parent) for mount in container["volumeMounts"])
        served.append(check_command([*arguments, file], tmp_path / "deployment.yml")["only"])
    assert served == ["control-plane", *(one["name"] for one in values.get("services", []))]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_probes_ask_routes_that_there_are(values: dict[str, Any]) -> None:
    for pod in pods(rendered(values)):
        (container,) = pod["containers"]
        probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe") if name in container]
        assert probes
        for probe in probes:
            if asked := probe.get("httpGet") or probe.get("tcpSocket"):
                assert asked.get("path", "/healthz") in ROUTES
                assert asked["port"] in {port["name"] for port in container["ports"]}
            else:
                assert "--ready-file=/tmp/ready.json" in container["args"], "which is what the command reads"
                assert (
                    f"COPY deploy/image/healthcheck.py {probe['exec']['command'][1]}\n"
                    in (ROOT / "Dockerfile").read_text()
                )


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_pod_may_take_as_long_to_end_as_what_runs_in_it(values: dict[str, Any]) -> None:
    for pod in pods(rendered(values)):
        (container,) = pod["containers"]
        drain = next(int(one.partition("=")[2]) for one in container["args"] if one.startswith("--drain-timeout="))
        before = int(container.get("lifecycle", {}).get("preStop", {"exec": {"command": [0, 0]}})["exec"]["command"][1])
        assert pod["terminationGracePeriodSeconds"] >= drain + before + 10


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_nothing_has_more_rights_than_it_needs(values: dict[str, Any]) -> None:
    for pod in pods(rendered(values)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_everything_selects_what_it_means() -> None:
    objects = [one for one in rendered(LARGE) if "spec" in one]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in objects if "template" in one["spec"]]
    selectors = [one["spec"]["selector"] for one in of_kind(objects, "Service")]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in of_kind(objects, "PodDisruptionBudget")]
    assert len(selectors) == 5
    for selector in selectors:
        assert sum(selector.items() <= one.items() for one in labels) == 1
    (scaled,) = of_kind(objects, "HorizontalPodAutoscaler")
    target = scaled["spec"]["scaleTargetRef"]["name"]
    (deployment,) = [one for one in of_kind(objects, "Deployment") if one["metadata"]["name"] == target]
    assert "replicas" not in deployment["spec"], "an upgrade would undo what was scaled"


def test_passwords_stand_in_the_secret_alone() -> None:
    for one in rendered(LARGE):
        assert (one["kind"] == "Secret") == ("s3cret" in yaml.safe_dump(one))


def test_control_planes_share_the_store_and_each_has_an_address() -> None:
    objects = rendered(LARGE)
    (plane,) = of_kind(objects, "StatefulSet")
    (container,) = plane["spec"]["template"]["spec"]["containers"]
    given = parsed(container["args"])
    assert given["shared"]
    assert not given["allow_remote"], "it has tokens"
    address = next(one["value"] for one in container["env"] if one["name"] == "POD_ADDRESS")
    assert given["public_url"] == "$(POD_ADDRESS)"
    assert address == f"http://$(POD_NAME).{plane['spec']['serviceName']}.prod.svc:8000"
    headless = next(one for one in of_kind(objects, "Service") if one["spec"].get("clusterIP") == "None")
    assert headless["metadata"]["name"] == plane["spec"]["serviceName"]
    (plane,) = of_kind(rendered(SMALL), "StatefulSet")
    given = parsed(plane["spec"]["template"]["spec"]["containers"][0]["args"])
    assert (given["shared"], given["allow_remote"]) == (False, True)


def test_what_the_deployment_file_takes_from_the_environment_is_in_the_secret() -> None:
    (secret,) = of_kind(rendered(LARGE), "Secret")
    tokens = LARGE["deployment"]["access"]["tokens"].values()
    wanted = {LARGE["deployment"]["message-queue"]["url"]["env"], *(token["env"] for token in tokens)}
    assert wanted <= secret["stringData"].keys()


def test_services_show_their_token() -> None:
    objects = rendered(LARGE)
    (secret,) = of_kind(objects, "Secret")
    for deployment in of_kind(objects, "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (shown,) = [one for one in container["env"] if one["name"] == "LLAMA_DEPLOY_TOKEN"]
        asked = shown["valueFrom"]["secretKeyRef"]
        assert asked["name"] == secret["metadata"]["name"]
        assert asked["key"] in secret["stringData"]


def test_services_find_the_control_plane() -> None:
    objects = rendered(LARGE)
    ports = {one["metadata"]["name"]: one["spec"]["ports"][0]["port"] for one in of_kind(objects, "Service")}
    for deployment in of_kind(objects, "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        env = {one["name"]: one.get("value") for one in container["env"]}
        host, _, port = env["LLAMA_DEPLOY_CONTROL_PLANE_URL"].removeprefix("http://").partition(":")
        assert ports[host] == int(port)


def test_the_audit_log_goes_where_a_container_can_write() -> None:
    """The folder of the deployment file is a ConfigMap, which nobody can write to."""
    (config,) = of_kind(rendered(LARGE), "ConfigMap")
    assert yaml.safe_load(config["data"]["deployment.yml"])["access"]["audit"] == {"file": "-"}
    own = LARGE["deployment"] | {"access": LARGE["deployment"]["access"] | {"audit": {"record": "none"}}}
    (config,) = of_kind(rendered(LARGE | {"deployment": own}), "ConfigMap")
    assert yaml.safe_load(config["data"]["deployment.yml"])["access"]["audit"] == {"record": "none"}
    (config,) = of_kind(rendered(SMALL), "ConfigMap")
    assert "access" not in yaml.safe_load(config["data"]["deployment.yml"])


def mounted(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By path, the secret that is mounted there."""
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    (container,) = pod["containers"]
    return {one["mountPath"]: secrets[one["name"]] for one in container["volumeMounts"] if one["name"] in secrets}


@pytest.mark.parametrize("values", [TLS, MUTUAL], ids=["TLS", "mutual TLS"])
def test_with_tls_everybody_speaks_it_and_believes_who_signed_it(values: dict[str, Any]) -> None:
    objects = rendered(values)
    (config,) = of_kind(objects, "ConfigMap")
    tls = yaml.safe_load(config["data"]["deployment.yml"])["access"]["tls"]
    mutual = "clientSecretName" in values["tls"]
    assert ("client-ca-file" in tls) == mutual
    for pod in pods(objects):
        (container,) = pod["containers"]
        env = {one["name"]: one.get("value") for one in container["env"]}
        serves = "--only=control-plane" in container["args"]
        there = {
            f"{path}/{key}": secret
            for path, secret in mounted(pod).items()
            for key in [one["key"] for one in secret.get("items", [])] or ["tls.crt", "tls.key", "ca.crt"]
        }
        wanted = {"LLAMA_DEPLOY_CA_FILE": "demo-tls"}
        if mutual:
            wanted |= dict.fromkeys(
                ("LLAMA_DEPLOY_CLIENT_CERTIFICATE_FILE", "LLAMA_DEPLOY_CLIENT_KEY_FILE"), "demo-clients"
            )
        assert {name: there[env[name]]["secretName"] for name in wanted} == wanted
        assert set(tls.values()) <= there.keys() or not serves
        assert ("/etc/llama-deploy-tls/tls.key" in there) == serves, "a service needs no key of the server"
        address = "POD_ADDRESS" if serves else "LLAMA_DEPLOY_CONTROL_PLANE_URL"
        assert env[address].startswith("https://")
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container.get(name, {}).get("httpGet")
            assert asked is None or (asked["scheme"] == "HTTPS" and not mutual), "Kubernetes shows no certificate"


def token(name: str) -> str:
    return f"token-of-{name}".ljust(40, "x")


@pytest.mark.slow
async def test_what_it_says_of_tls_and_tokens_runs(tmp_path: Path) -> None:
    """The commands, the environment and the file of the chart, with certificates in the place of its secrets."""
    port = free_port()
    access = {
        "tokens": {
            "planes": {"scopes": ["admin"], "env": "LLAMA_DEPLOY_TOKEN"},
            "worker": {"scopes": ["serve"], "env": "WORKER_TOKEN"},
        }
    }
    secrets = {"LLAMA_DEPLOY_TOKEN": token("planes"), "WORKER_TOKEN": token("worker")}
    objects = rendered(
        {
            "deployment": {"name": "demo", "services": {"shout": {"import-path": "services:shout"}}, "access": access},
            "secret": {"values": secrets},
            "serviceToken": {"key": "WORKER_TOKEN"},
            "services": [{"name": "shout"}],
            "tls": MUTUAL["tls"],
        }
    )
    server, clients = Authority(tmp_path, "server-ca"), Authority(tmp_path, "client-ca")
    for folder, by, name in (("tls", server, "server"), ("client-tls", clients, "client")):
        files = by.sign(name, "127.0.0.1")
        (tmp_path / folder).mkdir()
        for kind, path in (("tls.crt", files.certificate), ("tls.key", files.key), ("ca.crt", by.file)):
            (tmp_path / folder / kind).write_bytes(path.read_bytes())
        (tmp_path / folder / "tls.key").chmod(0o600)
    here = {
        "/etc/llama-deploy-": f"{tmp_path}/",
        "/etc/llama-deploy/": f"{tmp_path}/",
        "/tmp/ready.json": f"{tmp_path}/WHO.json",
        "/data/store.db": ":memory:",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=8000": f"--port={port}",
        "https://demo-llama-deploy:8000": f"https://127.0.0.1:{port}",
    }

    def moved(text: str, who: str = "") -> str:
        for old, new in here.items():
            text = text.replace(old, new)
        return text.replace("WHO", who)

    (config,) = of_kind(objects, "ConfigMap")
    (tmp_path / "deployment.yml").write_text(moved(config["data"]["deployment.yml"]))
    shutil.copy(ROOT / "deploy" / "compose" / "app" / "services.py", tmp_path)
    base = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_DEPLOY")}
    own: dict[str, dict[str, str]] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(who: str, command: list[str]) -> None:
        with (tmp_path / f"{who}.out").open("wb") as out, (tmp_path / f"{who}.log").open("wb") as log:
            running[who] = subprocess.Popen(command, env=own[who], stdout=out, stderr=log)

    def healthy(who: str) -> bool:
        asked = {**own[who], "LLAMA_DEPLOY_READY_FILE": f"{tmp_path}/{who}.json"}
        ran = subprocess.run([sys.executable, HEALTH_CHECK], env=asked, check=False, capture_output=True)
        return ran.returncode == 0

    try:
        for kind, who in (("StatefulSet", "plane"), ("Deployment", "service")):
            (container,) = of_kind(objects, kind)[0]["spec"]["template"]["spec"]["containers"]
            given = {one["name"]: moved(one["value"]) for one in container["env"] if "value" in one}
            by_key = {one["name"]: one["valueFrom"] for one in container["env"] if "valueFrom" in one}
            keys = {name: said["secretKeyRef"]["key"] for name, said in by_key.items() if "secretKeyRef" in said}
            given |= {name: secrets[key] for name, key in keys.items()}
            given |= secrets if "envFrom" in container else {}
            own[who] = base | given
            command = [sys.executable, "-m", "llama_deploy.cli", *(moved(one, who) for one in container["args"])]
            start(who, command)
            await eventually(partial(healthy, who), PROCESS_S)
        url = f"https://127.0.0.1:{port}"
        ask = [sys.executable, "-m", "llama_deploy.cli", "-s", url, "run", "shout", "-a", "text", "hello"]
        ran = await asyncio.to_thread(subprocess.run, ask, env=own["plane"], check=False, capture_output=True)
        assert ran.stdout == b"HELLO\n", ran.stderr
        stranger = {name: one for name, one in own["plane"].items() if "CLIENT" not in name}
        ran = await asyncio.to_thread(subprocess.run, ask, env=stranger, check=False, capture_output=True)
        assert ran.returncode == 3, "nobody gets in without a certificate"
    finally:
        for process in reversed(running.values()):
            process.terminate()
            process.wait(PROCESS_S)
    audit = [json.loads(line) for line in (tmp_path / "plane.out").read_text().splitlines()]
    assert {"planes", "worker"} <= {line["who"] for line in audit}


def test_sqlite_has_a_volume_and_one_control_plane() -> None:
    (plane,) = of_kind(rendered(SMALL), "StatefulSet")
    assert [claim["metadata"]["name"] for claim in plane["spec"]["volumeClaimTemplates"]] == ["data"]
    (plane,) = of_kind(rendered(LARGE), "StatefulSet")
    assert "volumeClaimTemplates" not in plane["spec"]
    with pytest.raises(helm.HelmRenderError, match="control planes share a PostgreSQL store only"):
        rendered({"controlPlane": {"replicas": 2}})
    with pytest.raises(helm.HelmRenderError, match="nothing speaks TLS"):
        rendered(SMALL | {"tls": {"clientSecretName": "demo-clients"}})
    twice = LARGE["deployment"] | {"access": {"tls": {"certificate-file": "a", "key-file": "b"}}}
    with pytest.raises(helm.HelmRenderError, match="say the same"):
        rendered(TLS | {"deployment": twice})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"controlplane": {}}, "'controlplane' not allowed"),
        ({"store": {"url": "postgresql://demo:s3cret@db/demo"}}, "does not match pattern"),
        ({"services": [{"replicas": 2}]}, "missing property 'name'"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(helm.HelmValuesError, match=says):
        rendered(values)
