"""A deployment file for Kubernetes: the values of the Helm chart whose pods run its services.

Each service is a Deployment of the image that its source names, or of one for all. Nothing is installed, and no secret
is read: what the file takes from the environment stands in a secret of the cluster, by the same names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import yaml

from llama_deploy.apiserver.source_keys import IMAGE
from llama_deploy.apiserver.specs import DeploymentFile, ServiceSpec
from llama_deploy.apiserver.wording import listed
from llama_deploy.errors import SettingError

MEMORY_FREE_MB = 128
"""What a pod may have beyond the limit of its process: the program itself, and what is not counted there."""
REQUESTED_MB = 256
_VARIABLE = re.compile(r"(?<!\$)\$\{([A-Za-z_]\w*)(:-[^}]*)?\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The values, and what somebody has to do beside."""

    values: dict[str, Any]
    hints: tuple[str, ...]

    @property
    def text(self) -> str:
        """The values as YAML, with the hints in front."""
        lines = [f"# {line}" for hint in self.hints for line in hint.splitlines()]
        body = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=120)
        return "\n".join([*lines, body])


def chart_values(
    file: DeploymentFile, source: bytes, *, image: str | None = None, secret: str | None = None
) -> Rendered:
    """The chart's values for a deployment file; `source` is its text.

    `image` runs the control plane, and services whose source names none; `secret` is the name of a secret of the
    cluster with what the file refers to. Raises `SettingError` where a service has no image, and for what cannot be
    taken along.
    """
    without = [service.name for service in file.services if service.image is None]
    if image is None and without:
        raise SettingError(
            f"{listed(without)} cannot run in Kubernetes without an image",
            why="the source in the deployment file is not of the type `docker`",
            fix="--image NAME:TAG   an image with the code of all of them\n"
            "or source: {type: docker, name: NAME:TAG} for each",
        )
    _check_takes_along(file)
    document = yaml.safe_load(source)
    wanted = sorted(_variables(document))
    values: dict[str, Any] = {"image": _image(image)} if image is not None else {}  # the chart's own has the program
    for service in file.services:
        if service.image is None:
            _put_in_image(document["services"][service.name], service, image or "")
    values["deployment"] = document
    if file.store is not None and "://" in file.store:
        values["store"] = {"url": _without_password(file.store)}
    if secret is not None:
        values["secret"] = {"existingName": secret}
    values["services"] = [_service(service, secret) for service in file.services]
    return Rendered(values=values, hints=tuple(_hints(file, wanted, secret)))


def _check_takes_along(file: DeploymentFile) -> None:
    """Raise `SettingError` for files beside the deployment file: only that itself gets into the cluster."""
    beside = [f"`env-files` of {service.name}" for service in file.services if service.env_files]
    beside += ["`encryption-key-file`"] if file.encryption_key_file is not None else []
    if beside:
        raise SettingError(
            f"{listed(beside)} cannot be taken along",
            why="nothing but the deployment file itself gets into the cluster",
            fix="put what they say into a secret, and refer to it: env: {NAME: {env: NAME}}",
        )


def _put_in_image(document: dict[str, Any], service: ServiceSpec, image: str) -> None:
    """Say of a service whose code lies beside the deployment file that an image has it, at the same place."""
    document["source"] = {"type": "docker", "name": image}
    if service.source_folder is not None and service.source_folder.parts:
        document["import-path"] = f"{service.source_folder.as_posix()}/{service.import_path}"
        document.pop("path", None)


def _service(service: ServiceSpec, secret: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {"name": service.name, "replicas": service.replicas}
    if service.image is not None:
        values["image"] = _image(service.image)
    if secret is not None:
        values["secretName"] = secret
    if service.process_memory_mb_max is not None:
        limit = service.process_memory_mb_max + MEMORY_FREE_MB
        values["resources"] = {
            "requests": {"cpu": "100m", "memory": f"{min(limit, REQUESTED_MB)}Mi"},
            "limits": {"memory": f"{limit}Mi"},
        }
    return values


def _image(name: str) -> dict[str, str]:
    """An image in the two words that the chart puts together with a colon. Raises `SettingError`."""
    found = IMAGE.fullmatch(name)
    if found is None or not (found["tag"] or found["digest"]):
        raise SettingError(f"`{name}` is no image with a tag", fix="name it as in registry.example.com/desk:1.4")
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag}


def _without_password(store: str) -> str:
    """The URL of a store, which may not hold a password: it would stand in the command of a container."""
    if urlsplit(store).password is not None:
        raise SettingError(
            "the URL of the store has a password",
            fix="leave it out, and put PGPASSWORD into the secret",
        )
    return store


def _variables(value: Any) -> set[str]:
    """The variables that a deployment file refers to, wherever they stand."""
    if isinstance(value, dict):
        named = {value["env"]} if isinstance(value.get("env"), str) else set()
        return named.union(*map(_variables, value.values())) if value else named
    if isinstance(value, list):
        return set().union(*map(_variables, value)) if value else set()
    return {name for name, otherwise in _VARIABLE.findall(value) if not otherwise} if isinstance(value, str) else set()


def _hints(file: DeploymentFile, wanted: list[str], secret: str | None) -> list[str]:
    hints = [f"Values of the chart deploy/helm/llama-deploy for the deployment {file.name}."]
    if wanted:
        where = f"the secret {secret}" if secret is not None else "a secret: --secret NAME"
        hints.append(f"What it takes from the environment has to be in {where}: {', '.join(wanted)}")
    if not file.access.tokens:
        hints.append("It asks for no tokens: add some (`access`), or set controlPlane.allowWithoutTokens.")
    else:
        hints.append("Services show the token that serviceToken.key names, one with the scope serve.")
    if file.page is not None:
        hints.append("Its page (`ui`) is not part of it: only an API server has one.")
    if any(one.import_path is not None for one in (file.orchestrator, *file.orchestrators.values())):
        hints.append("The code of its own orchestrator has to be installed in the control plane's image.")
    dependent = [service.name for service in file.services if service.python_dependencies]
    if dependent:
        hints.append(f"`python-dependencies` are not installed: the image has to have those of {listed(dependent)}.")
    return hints
