"""What a deployment file says, as frozen values: the deployment, its services, its orchestrator, its address.

`deployment_file.py` makes them from YAML and `loader.py` turns them into objects. Nothing is read before it is asked
for: the files and variables that a deployment refers to are looked at when it starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llama_deploy.apiserver.access_spec import AccessSpec
from llama_deploy.apiserver.queue_spec import MessageQueueSpec
from llama_deploy.apiserver.reference import Reference
from llama_deploy.control_plane.settings import EngineSettings
from llama_deploy.errors import SettingError
from llama_deploy.types import Webhook, WebhookSettings
from llama_deploy.types.schedules import Schedule

CONTROL_PLANE = "control-plane"
"""The name by which `llamactl serve --only` means the control plane; no service may have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlPlaneSpec:
    """Where the control plane listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 means any free port."""
    shared: bool = False
    """Whether other control planes share the store."""
    public_url: str | None = None
    """Where services and the others reach it; `None` means where it listens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrchestratorSpec:
    """Which orchestrator decides: a built-in one by `name`, or one of the user's by `import_path`, never both."""

    name: str | None = "simple"
    import_path: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its constructor, as the file spells them (`max-retries` stands for `max_retries`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhooksSpec:
    """Who is told of the end of tasks, and who may be."""

    url: str | Reference | None = None
    secret: str | None = None
    hosts: tuple[str, ...] = ()
    secrets: Mapping[str, Reference] = field(default_factory=dict)

    def settings(self, base_folder: Path) -> WebhookSettings:
        """What the control plane is given, with every reference followed. Raises `SettingError`."""
        url = self.url.read(base_folder) if isinstance(self.url, Reference) else self.url
        try:
            default = Webhook(url=url, secret=self.secret) if url is not None else None
        except ValueError:
            raise SettingError("the URL of the default webhook cannot be used", fix="give https://host/path") from None
        secrets = {name: reference.read(base_folder) for name, reference in self.secrets.items()}
        return WebhookSettings(default=default, hosts=self.hosts, secrets=secrets)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSpec:
    """A source that has to be fetched, or an image that has to run."""

    type: Literal["git", "package", "docker"]
    location: str
    """The address of the repository, without credentials; the requirement of the package; the name of the image."""
    branch: str | None = None
    tag: str | None = None
    commit: str | None = None
    """One of these three, or none: the default branch."""
    token: Reference | None = None
    """What gets into a private repository over https."""
    ssh_key: Reference | None = None
    """The private key that gets into one over ssh."""
    host_key: str | None = None
    """The public key of the ssh server: its kind, a space, and the key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSpec:
    """One service of a deployment. `None` means that the file says nothing and the code's own value stands."""

    name: str
    import_path: str
    """`module:variable`, `folder/module:variable` or `folder/file.py:variable`, seen from the source's folder."""
    source_folder: Path | None = None
    """The folder of the service's code, relative to the deployment file's; `None` means that folder itself."""
    source: SourceSpec | None = None
    """What has to be fetched before the service can run; `source_folder` is where it is then."""
    python_dependencies: tuple[str, ...] = ()
    """Requirements of an environment of the service's own."""
    path: Path | None = None
    """A folder that is put on `sys.path`, relative to the folder of the service's code."""
    title: str | None = None
    description: str | None = None
    concurrency: int | None = None
    run_timeout_s: float | None = None
    retry: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `RetryPolicy` that the file sets; the others keep the code's values."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `ServiceLimits` that the file sets; they take the place of all that the code says."""
    memory: Literal["none", "session", "task"] | None = None
    replicas: int = 1
    process_memory_mb_max: int | None = None
    """Memory of one process in MiB, beyond which the kernel refuses more."""
    env: Mapping[str, str | Reference] = field(default_factory=dict)
    env_files: tuple[Path, ...] = ()
    """Files in the format of `.env`, relative to the deployment file; a later one wins, and `env` wins over all."""

    @property
    def image(self) -> str | None:
        """The container image that has its code and nothing else has; `None` where it runs without one."""
        return self.source.location if self.source is not None and self.source.type == "docker" else None

    def code_folder(self, base_folder: Path) -> Path:
        """Where import paths of this service start, given the folder of the deployment file.

        In an image that is the folder that its processes begin in.
        """
        if self.image is not None:
            return Path.cwd()
        return base_folder / self.source_folder if self.source_folder is not None else base_folder

    def watched_folders(self, base_folder: Path) -> tuple[Path, ...]:
        """The folders whose Python files belong to this service, given the folder of the deployment file."""
        code = self.code_folder(base_folder)
        return (code,) if self.path is None else (code, code / self.path)

    def environment(self, base_folder: Path) -> dict[str, str]:
        """The variables that the service's process gets on top of its parent's, given the deployment file's folder.

        Reads the `.env` files and follows references now, so a restart sees what they say by then. Raises `OSError`
        when a file is gone, and `SettingError` for a variable that is not set.
        """
        variables: dict[str, str] = {}
        if self.env_files:
            from dotenv import dotenv_values

            for env_file in self.env_files:
                with (base_folder / env_file).open(encoding="utf-8") as stream:
                    found = dotenv_values(stream=stream)
                variables |= {key: value for key, value in found.items() if value is not None}
        return variables | {name: _value(name, value, base_folder) for name, value in self.env.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class PageSpec:
    """The page of a deployment."""

    source_folder: Path | None = None
    """Relative to the deployment file's folder; `None` where it has to be fetched."""
    source: SourceSpec | None = None
    build: tuple[tuple[str, ...], ...] | None = None
    """Commands that build it; `None` means the usual ones."""
    command: tuple[str, ...] | None = None
    """What serves it."""
    strips: bool = False
    """Whether it is asked for paths without what stands before its own."""
    env: Mapping[str, str | Reference] = field(default_factory=dict)

    def variables(self, base_folder: Path) -> dict[str, str]:
        """The variables that the file sets. Raises `SettingError`."""
        return {name: _value(name, value, base_folder) for name, value in self.env.items()}


def _value(name: str, value: str | Reference, base_folder: Path) -> str:
    """What a variable is set to: a reference followed, or a text in which `${NAME}` stands for another variable."""
    if isinstance(value, Reference):
        return value.read(base_folder)

    def other(found: re.Match[str]) -> str:
        if found["escaped"]:
            return found.group()[1:]
        known = os.environ.get(found["name"])
        if known is None and found["default"] is None:
            raise SettingError(
                f"the variable {found['name']} is not set",
                why=f"the deployment file refers to it in `{name}`",
                fix=f"export {found['name']}=...\nor write ${{{found['name']}:-what it is otherwise}}",
            )
        return known if known is not None else found["default"]

    return _OTHER_VARIABLE.sub(other, value)


_OTHER_VARIABLE = re.compile(r"(?P<escaped>\$)?\$\{(?P<name>[A-Za-z_]\w*)(:-(?P<default>[^}]*))?\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentFile:
    """A deployment file that was read and found valid."""

    path: Path
    """The file itself, absolute."""
    name: str
    control_plane: ControlPlaneSpec = ControlPlaneSpec()
    orchestrator: OrchestratorSpec = OrchestratorSpec()
    orchestrators: Mapping[str, OrchestratorSpec] = field(default_factory=dict)
    """Further ones by name."""
    default_service: str | None = None
    limits: EngineSettings = field(default_factory=EngineSettings)
    store: str | None = None
    redact: tuple[str, ...] = ()
    """Patterns of keys whose values people do not get to see."""
    encryption_key_file: str | None = None
    """A file of keys with which the content of the store is encrypted; relative to the file's folder."""
    """A path relative to the file's folder, or `:memory:`; `None` means the default place beside the file."""
    services: tuple[ServiceSpec, ...] = ()
    page: PageSpec | None = None
    message_queue: MessageQueueSpec = field(default_factory=MessageQueueSpec)
    webhooks: WebhooksSpec = WebhooksSpec()
    access: AccessSpec = field(default_factory=AccessSpec)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    """What the file says and this program reads without using it, each as `file:line:column: text`."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the file start from."""
        return self.path.parent

    def service(self, name: str) -> ServiceSpec:
        """The service of this name; raises `KeyError` when the file has none."""
        for spec in self.services:
            if spec.name == name:
                return spec
        raise KeyError(name)
