"""Which services exist, which instances serve them, and whether those are alive.

Definitions are durable, so that after a restart the names are known before anybody has come back; instances are
not: they register again by themselves. The registry does not deliver anything and knows no tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Protocol

import msgspec

from llama_deploy.control_plane.refusals import beyond, check_id
from llama_deploy.control_plane.settings import EngineSettings
from llama_deploy.errors import InvalidRequestError, ServiceUnknownError
from llama_deploy.runtime import Clock
from llama_deploy.types import InstanceView, ServiceDefinition, ServiceView
from llama_deploy.types.reserved import ANSWERED_HERE


def is_reserved(name: str) -> bool:
    """Whether a service's name is for the control plane's own use: it begins with two underscores."""
    return name.startswith("__")


def check_name(name: str, length_max: int, *, own: bool) -> None:
    """Raise `InvalidRequestError` for what is no name, and for one that only the control plane's `own` may have."""
    check_id("service_name", name, length_max)
    if name in ANSWERED_HERE or (is_reserved(name) and not own):
        raise InvalidRequestError(
            f"a service may not be called {name!r}",
            why="names that begin with two underscores are the control plane's own",
        )


class InstancePort(Protocol):
    """What the registry and the engine need of a connected instance."""

    instance_id: str
    last_seen_at: float
    held: dict[str, int]
    """Step id -> attempt of everything that the instance was given and has not answered."""
    definitions: list[ServiceDefinition]
    """What it serves."""

    @property
    def release(self) -> str:
        """The release that it says it runs; empty for none."""
        ...

    def change_topics(self) -> None:
        """Take steps from where those of its release wait by now."""

    def cancel(self, step_id: str, reason: str) -> None:
        """Tell the instance to stop a step that it holds."""

    def give_input(self, step_id: str, number: int, value: bytes) -> None:
        """Hand a person's input to a step that the instance holds."""

    def view(self, service: str) -> InstanceView:
        """The instance as the API shows it."""
        ...

    def capacity(self, service: str) -> int:
        """Steps of a service that the instance takes at once; 0 while it drains."""
        ...


class ServiceEntry:
    """One known service."""

    def __init__(self, definition: ServiceDefinition) -> None:
        self.definition = definition
        self.instances: dict[str, InstancePort] = {}
        self.lost_at: float | None = None
        """When its last instance was lost; `None` when it left on purpose, or none was ever there."""
        self.restored = False
        """Known from an earlier run, and no instance of it has come back so far."""
        self.kept = False
        """Known from an earlier run."""
        self.releases: Counter[str] = Counter()
        """How many of its instances run which release; under the empty name those that say none."""
        self.lost_of: dict[str, float] = {}
        """By release, where instances of it were here and none is: when the last one was lost, minus infinity where it
        left on purpose."""
        self.answered = 0
        """Answers that have come from its instances since the start."""

    def enter(self, port: InstancePort) -> None:
        """An instance serves it; an earlier connection of the same instance does not any more."""
        before = self.instances.get(port.instance_id)
        if before is not None:
            self.releases[before.release] -= 1
        self.instances[port.instance_id] = port
        self.releases[port.release] += 1
        self.lost_at, self.restored = None, False
        self.lost_of.pop(port.release, None)

    def leave(self, port: InstancePort, lost_at: float | None) -> None:
        """An instance serves it no more, since `lost_at` where it was lost."""
        if self.instances.get(port.instance_id) is not port:
            return
        del self.instances[port.instance_id]
        self.releases[port.release] -= 1
        if not self.instances:
            self.lost_at = lost_at
        if not self.releases[port.release]:
            del self.releases[port.release]
            self.lost_of[port.release] = -math.inf if lost_at is None else lost_at


class Registry:
    """The services and instances of one control plane."""

    def __init__(self, clock: Clock, settings: EngineSettings) -> None:
        self._clock = clock
        self._settings = settings
        self.services: dict[str, ServiceEntry] = {}
        self.instances: dict[str, InstancePort] = {}
        self.watchers: set[Callable[[], None]] = set()
        """Called whenever an instance comes or goes."""
        self.expected_until = 0.0
        """Until then, the services of an earlier run are expected back: the control plane has just started."""
        self.current = ""
        """The release whose instances say how services are defined; empty where any instance does."""

    def restore(self, definitions: dict[str, bytes]) -> None:
        """Know the services of an earlier run; their instances are expected back for a while."""
        for name, encoded in definitions.items():
            entry = self.services[name] = ServiceEntry(ServiceDefinition.model_validate_json(encoded))
            entry.restored = entry.kept = True
        self.expected_until = self._clock.now() + self._settings.service_return_s

    def check_room(self, instance_id: str, definitions: list[ServiceDefinition]) -> None:
        """Raise `LimitExceededError` for one instance, one service or one place too many."""
        settings = self._settings
        if instance_id not in self.instances and len(self.instances) >= settings.instances_max:
            raise beyond("instances_max", settings.instances_max, "as many instances are connected as may be")
        self.check_services(definitions)

    def check_services(self, definitions: list[ServiceDefinition]) -> None:
        """Raise `LimitExceededError` for one service or one place too many."""
        settings = self._settings
        new = {one.service_name for one in definitions if one.service_name not in self.services}
        if len(self.services) + len(new) > settings.services_max:
            raise beyond("services_max", settings.services_max, f"there is no room for {len(new)} more services")
        for definition in definitions:
            if definition.concurrency > settings.steps_per_instance_max:
                what = f"the concurrency of {definition.service_name} is {definition.concurrency}"
                raise beyond("steps_per_instance_max", settings.steps_per_instance_max, what)

    def register(self, port: InstancePort, definitions: list[ServiceDefinition]) -> list[ServiceDefinition]:
        """An instance is here and serves these; returns the definitions that are new or have changed.

        How a known service is defined, an instance of another release than the current one does not change.
        """
        speaks = port.release in ("", self.current) or not self.current
        changed: list[ServiceDefinition] = []
        self.instances[port.instance_id] = port
        for definition in definitions:
            entry = self.services.get(definition.service_name)
            if is_reserved(definition.service_name):
                entry = self.services[definition.service_name] = entry or ServiceEntry(definition)
            elif entry is None:
                entry = self.services[definition.service_name] = ServiceEntry(definition)
                changed.append(definition)
            elif entry.definition != definition and speaks:
                entry.definition = definition
                changed.append(definition)
            entry.enter(port)
        self._notify()
        return changed

    def unregister(self, port: InstancePort, *, lost: bool) -> None:
        """An instance is gone: on purpose, or `lost`. Repeating it, or an older port of the instance, does nothing."""
        if self.instances.get(port.instance_id) is not port:
            return
        del self.instances[port.instance_id]
        lost_at = self._clock.now() if lost else None
        for entry in self.services.values():
            entry.leave(port, lost_at)
        self._notify()

    def define(self, definition: ServiceDefinition) -> None:
        """Know a service without an instance (a registration over HTTP)."""
        entry = self.services.get(definition.service_name)
        if entry is None:
            self.services[definition.service_name] = ServiceEntry(definition)
        else:
            entry.definition = definition
        self._notify()

    def agree(self, recorded: dict[str, ServiceDefinition]) -> list[str]:
        """Know what is recorded by now, by whomever; services that instances are here for are as those say.

        Returns the names of those that have changed.
        """
        changed = []
        for name, definition in recorded.items():
            entry = self.services.get(name)
            if entry is None or (not entry.instances and entry.definition != definition):
                self.define(definition)
                changed.append(name)
        for name, entry in list(self.services.items()):
            if name not in recorded and not entry.instances and not is_reserved(name):
                self.forget(name)
                changed.append(name)
        return changed

    def forget(self, name: str) -> bool:
        """Know a service no more. True when it was known."""
        return self.services.pop(name, None) is not None

    def definition(self, name: str) -> ServiceDefinition | None:
        """The service's definition, or `None` when it was never registered."""
        entry = self.services.get(name)
        return entry.definition if entry else None

    def has_instance(self, name: str) -> bool:
        """Whether an instance is here now."""
        entry = self.services.get(name)
        return entry is not None and bool(entry.instances)

    def serves(self, name: str) -> bool:
        """Whether a task for this service is accepted: an instance is here, or is expected back."""
        entry = self.services.get(name)
        if entry is None:
            return name in ANSWERED_HERE
        if entry.instances:
            return True
        if entry.lost_at is not None:
            return self._clock.now() - entry.lost_at < self._settings.service_return_s
        return entry.restored and self.returning

    @property
    def returning(self) -> bool:
        """Whether the control plane has just started, so that instances of an earlier run may come back."""
        return self._clock.now() < self.expected_until

    def expects(self, entry: ServiceEntry, release: str) -> bool:
        """Whether an instance of a release was lost so lately that it is expected back."""
        lost_at = entry.lost_of.get(release)
        return lost_at is not None and self._clock.now() - lost_at < self._settings.service_return_s

    def unserved(self, name: str) -> ServiceUnknownError:
        """The refusal of a task for a service that nobody serves."""
        served = [name for name in self.names() if self.serves(name)]
        close = get_close_matches(name, served, n=1)
        if name in self.services:
            why = "the service is known, but no instance of it is connected"
        else:
            why = f"services that are served: {', '.join(served)}" if served else "no service is connected"
        hint = f'did you mean "{close[0]}"?\n' if close else ""
        return ServiceUnknownError(
            f'nobody serves "{name}"',
            why=why,
            fix=f"{hint}start the service, or submit with wait_for_service to wait until it is there",
            service=name,
            known=served,
        )

    def names(self) -> list[str]:
        """Every known service, the control plane's own left out, by name."""
        return sorted(name for name in self.services if not is_reserved(name))

    def instance_ids(self) -> list[str]:
        """The instances that are here, the control plane's own left out."""
        own = {
            id(port) for name in self.services if is_reserved(name) for port in self.services[name].instances.values()
        }
        return [port.instance_id for port in self.instances.values() if id(port) not in own]

    def view(self, name: str, waiting: int, oldest_waiting_s: float | None) -> ServiceView:
        """One service as the API shows it."""
        entry = self.services[name]
        instances = [port.view(name) for port in entry.instances.values()]
        state = "up" if entry.instances else ("returning" if self.serves(name) else "down")
        if instances and all(view.capacity == 0 for view in instances):
            state = "draining"
        fields: dict[str, Any] = {
            "definition": entry.definition,
            "instances": instances,
            "waiting": waiting,
            "running": sum(view.running for view in instances),
            "state": state,
            "oldest_waiting_s": oldest_waiting_s,
            "answered": entry.answered,
        }
        return ServiceView.model_validate(fields)

    def _notify(self) -> None:
        for watcher in tuple(self.watchers):
            watcher()


def encode_definition(definition: ServiceDefinition) -> bytes:
    """The definition as stored."""
    return msgspec.json.encode(definition.model_dump(mode="json"))
