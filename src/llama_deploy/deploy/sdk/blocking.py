"""`client.sync`: the other two parts for code that does not await.

A loop in a thread of its own does the work. Every object of a part is wrapped, so that its methods wait where they are
called and its streams are plain iterators; what the methods take and give is said there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llama_deploy.client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.deploy.sdk import apiserver, core
from llama_deploy.deploy.threads import portal_of
from llama_deploy.errors import SettingError

_PARTS = (
    apiserver.ApiServer,
    apiserver.Deployment,
    apiserver.DeploymentCollection,
    apiserver.SessionCollection,
    apiserver.Task,
    apiserver.TaskCollection,
    core.Core,
    core.Service,
    core.ServiceCollection,
    core.Session,
    core.SessionCollection,
)


class Sync:
    """The parts of a client, blocking. May be used from several threads, and where a loop is running."""

    def __init__(self, client: Client) -> None:
        if client.settings.own_transport:
            raise SettingError(
                "this client lives on the event loop of its control plane, and cannot be waited for there",
                fix="await its methods, or make a client with a URL",
            )
        portal = portal_of(self, "llama-deploy-sync-client")
        self.core: Any = Blocking(core.Core(client), portal, self)
        self.apiserver: Any = Blocking(apiserver.ApiServer(client), portal, self)


class Blocking:
    """An object of a part, whose methods wait where they are called."""

    def __init__(self, part: Any, portal: Portal, owner: Sync) -> None:
        self._part = part
        self._portal = portal
        self._owner = owner
        """Kept, because its portal ends with it."""

    def __repr__(self) -> str:
        return repr(self._part)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        return self._blocking(found) if inspect.ismethod(found) else self._wrapped(found)

    def _blocking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(method):
            return lambda *args, **kwargs: self._portal.iterate(lambda: method(*args, **kwargs))
        return lambda *args, **kwargs: self._wrapped(self._portal.call(method(*args, **kwargs)))

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, _PARTS):
            return Blocking(value, self._portal, self._owner)
        return [self._wrapped(one) for one in value] if isinstance(value, list) else value
