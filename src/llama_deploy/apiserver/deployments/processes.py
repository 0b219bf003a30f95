"""What the processes of a deployment run: its control plane, the instances of its services, its page.

Each is described as the supervisor takes it; nothing is started here. The name of a process ends with its *label*: the
number of its version, and which start of that it is of.
"""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from llama_deploy.apiserver.deployments.options import RunningOptions
from llama_deploy.apiserver.deployments.pages import environment_of, free_port
from llama_deploy.apiserver.deployments.pages import program as page_program
from llama_deploy.apiserver.deployments.versions import Version
from llama_deploy.apiserver.served_access import OWN_TOKENS_VARIABLE, OwnTokens
from llama_deploy.apiserver.specs import ServiceSpec
from llama_deploy.apiserver.supervisor import ChildSpec
from llama_deploy.errors import SettingError
from llama_deploy.runtime.credentials import INSTANCE_TOKEN_VARIABLE, new_token
from llama_deploy.types.access import digest_of

PLANE = "control-plane"
PAGE = "(ui)"
"""What stands in the place of a service's name for the process of the page."""
MODULE = "llama_deploy.apiserver.deployments.program"


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """What the processes of one deployment run."""

    name: str
    data: Path
    options: RunningOptions
    listener: socket.socket
    """Where its control plane listens, on this machine only; the server itself keeps it open."""
    server_token: str = field(default_factory=new_token)
    services_token: str = field(default_factory=new_token)

    @property
    def headers(self) -> dict[str, str]:
        """How the API server makes itself known to its control plane, which lets in nobody else but its services."""
        return {"authorization": f"Bearer {self.server_token}"}

    @property
    def address(self) -> tuple[str, int]:
        """Where its control plane listens, on this machine only."""
        host, port = self.listener.getsockname()[:2]
        return host, port

    @property
    def url(self) -> str:
        """The URL of its control plane, for this machine only."""
        return "http://{}:{}".format(*self.address)

    def program(self, python: Path | None, *arguments: str) -> tuple[str, ...]:
        """The command of a process of ours."""
        # -P: the folder that the child works in holds the user's modules, and none of them may stand in for ours.
        return (str(python or sys.executable), "-P", "-m", MODULE, *arguments)

    def plane(self, version: Version, number: int) -> ChildSpec:
        """The control plane of a version."""
        descriptor = self.listener.fileno()
        store = _store(version, self.data)
        return ChildSpec(
            name=PLANE,
            command=self.program(None, "control-plane", str(version.folder), str(descriptor), store),
            folder=version.tree,
            environment={
                OWN_TOKENS_VARIABLE: str(OwnTokens(digest_of(self.server_token), digest_of(self.services_token)))
            },
            inherited=(descriptor,),
            without=self.options.hidden,
            tells_ready=True,
            version=str(number),
        )

    def services(self, version: Version, label: str, replicas: Mapping[str, int]) -> list[ChildSpec]:
        """The processes of its services, as many as somebody asked for, else as the file says."""
        return [
            self._service(version, label, service, replica)
            for service in version.file.services
            for replica in range(1, replicas.get(service.name, service.replicas) + 1)
        ]

    def further(
        self, version: Version, label: str, service: str, count: int, *, besides: AbstractSet[str]
    ) -> list[ChildSpec]:
        """So many more processes of a service, under names that no others have."""
        of_service = version.service(service)
        numbered = (self._service(version, label, of_service, replica) for replica in itertools.count(1))
        return list(itertools.islice((one for one in numbered if one.name not in besides), max(0, count)))

    def _service(self, version: Version, label: str, service: ServiceSpec, replica: int) -> ChildSpec:
        drain = f"{self.options.drain_timeout_s:g}"
        memory_mb_max = str(service.process_memory_mb_max or 0)
        release = release_of(label) if binds_tasks(version) else ""
        arguments = (str(version.folder), service.name, self.url, drain, memory_mb_max, release)
        return ChildSpec(
            name=f"{service.name}/{replica}@{label}",
            command=self.program(version.place(service.name).python, "service", *arguments),
            folder=version.tree,
            environment=_environment(version, service) | {INSTANCE_TOKEN_VARIABLE: self.services_token},
            without=self.options.hidden,
            service=service.name,
            tells_ready=True,
            version=label,
        )

    def page(self, version: Version, label: str) -> list[ChildSpec]:
        """The process of the page, where it has one."""
        page, spec = version.page, version.file.page
        if page is None or spec is None or not page.command:
            return []
        variables = environment_of(spec, self.name, version.file.folder) | {"PORT": str(free_port())}
        return [
            ChildSpec(
                name=f"ui@{label}",
                command=page_program(page.command),
                folder=page.folder,
                environment=variables,
                without=self.options.hidden,
                service=PAGE,
                version=label,
            )
        ]


def binds_tasks(version: Version) -> bool:
    """Whether tasks finish on this version: not where control planes of others share the store.

    A number means a version on one server alone.
    """
    return not version.file.control_plane.shared


def label_of(name: str) -> str:
    """The label in the name of a process: the number of its version, and which start of that it is of."""
    return name.rpartition("@")[2]


def release_of(name: str) -> str:
    """The version that a process is of by its name or its label, as its control plane knows it."""
    return name.rpartition("@")[2].partition(".")[0]


def _environment(version: Version, service: ServiceSpec) -> dict[str, str]:
    try:
        return service.environment(version.file.folder)
    except OSError as error:
        raise SettingError(f"an env-file of {service.name} cannot be read", why=str(error)) from error


def _store(version: Version, data: Path) -> str:
    """Where the data of a deployment is: below its own folder, whatever version runs, unless its file says so."""
    store = version.file.store
    if store is None:
        return str(data / "store.db")
    if store == ":memory:" or "://" in store or Path(store).is_absolute():
        return store
    place = (data / store).resolve()
    if not place.is_relative_to(data.resolve()):
        raise SettingError(f"the store {store} lies outside of the deployment's own folder", fix="leave `store` out")
    place.parent.mkdir(parents=True, exist_ok=True)
    return str(place)


def listener() -> socket.socket:
    """A socket of the deployment's own, on this machine only."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener
