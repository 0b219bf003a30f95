"""Who is let in to a server while it runs: as its file says, and again when that changes.

The services that a server starts itself get a token of their own, which is made anew with every start and allows
nothing but serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from llama_deploy.apiserver.access_spec import AccessSpec
from llama_deploy.control_plane.http.access.guard import Access
from llama_deploy.control_plane.http.access.places import is_loopback
from llama_deploy.control_plane.http.access.tls import renew, server_context
from llama_deploy.errors import LlamaDeployError, SettingError
from llama_deploy.runtime.credentials import INSTANCE_TOKEN_VARIABLE, new_token
from llama_deploy.types.access import AccessSettings, Scope, Token, digest_of

OWN_SERVICES = "(own services)"
"""The name under which the server's own services appear in the audit log; no token of a file can have it."""
API_SERVER = "(api server)"
"""The name of an API server at the control planes that belong to it."""
OWN_TOKENS_VARIABLE = "LLAMA_DEPLOY_OWN_TOKENS"
"""What an API server tells the control planes that it starts: the hashes of its own token and of its services'."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OwnTokens:
    """The hashes of the two tokens that a control plane behind an API server knows."""

    server: bytes
    services: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `OWN_TOKENS_VARIABLE` says."""
        server, services = (bytes.fromhex(part) for part in text.split(","))
        return cls(server, services)

    def __str__(self) -> str:
        return f"{self.server.hex()},{self.services.hex()}"

    def settings(self) -> AccessSettings:
        """Who is let in: the API server to everything, its services to serving."""
        server = Token(name=API_SERVER, digest=self.server, scopes=frozenset(Scope), speaks_for_others=True)
        services = Token(name=OWN_SERVICES, digest=self.services, scopes=frozenset({Scope.SERVE}))
        return AccessSettings(tokens=(server, services))


class ServedAccess:
    """The access to one server, as `spec` says. Raises `SettingError` where what it refers to is not there.

    Paths are relative to `folder`; `read` gets what the file says by then.
    """

    def __init__(
        self,
        spec: AccessSpec,
        folder: Path,
        name: str,
        *,
        host: str,
        allow_remote: bool,
        report: Report,
        read: Callable[[], AccessSpec],
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._name = name
        self._host = host
        self._allow_remote = allow_remote
        self._report = report
        self._read = read
        self._own_token = new_token()
        settings = spec.settings(folder, name)
        self.access = Access(self._with_own(settings), listens_on=host)
        self.tls: ssl.SSLContext | None = server_context(settings.tls) if settings.tls is not None else None

    @classmethod
    def between(cls, tokens: OwnTokens, *, report: Report) -> Self:
        """Of a control plane that an API server alone talks to."""
        made = cls(AccessSpec(), Path(), "", host="127.0.0.1", allow_remote=False, report=report, read=AccessSpec)
        made.access.replace(tokens.settings())
        made.reloads = False
        return made

    reloads = True
    """Whether there is a file that may say something else by now."""

    @property
    def asks_for_tokens(self) -> bool:
        """Whether nobody is let in without one."""
        return self.access.tokens.asked_for

    @property
    def changes(self) -> bool:
        """Whether there is anything that may be read again: tokens, or a certificate."""
        return self.reloads and (self.asks_for_tokens or self.tls is not None)

    @property
    def own_environment(self) -> dict[str, str]:
        """What the server's own services need to be let in: what it was given for them, or what only itself knows.

        Where control planes share a store, services connect to all of them, with a token that all of them know.
        """
        return {INSTANCE_TOKEN_VARIABLE: os.environ.get(INSTANCE_TOKEN_VARIABLE) or self._own_token}

    @property
    def hidden(self) -> frozenset[str]:
        """The variables of the environment that hold tokens, which are not for the code of services."""
        return self._spec.variables

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Within the block, SIGHUP has tokens and certificates read again, where there are any."""
        if not self.changes:
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    def reload(self) -> None:
        """Read the file again, and what it refers to; where something is wrong, everything stays as it is."""
        try:
            self._use(self._read())
        except LlamaDeployError as error:
            self._report(f"{error.render()}\nNothing was changed: who is let in stays as it was.")

    def _use(self, spec: AccessSpec) -> None:
        """What this says counts from now on. Raises `SettingError`; everything stays as it is then."""
        settings = spec.settings(self._folder, self._name)
        if not settings.tokens and not self._allow_remote and not is_loopback(self._host):
            raise SettingError(
                "the file asks for no tokens any more", why=f"{self._host} can be reached from other machines"
            )
        if (settings.tls is None) != (self.tls is None):
            raise SettingError("TLS is turned on or off with a new start only", fix="start the server again")
        if self.tls is not None and settings.tls is not None:
            renew(self.tls, settings.tls)
        self.access.replace(self._with_own(settings))
        self._spec = spec
        self.tell()

    def _with_own(self, settings: AccessSettings) -> AccessSettings:
        if not settings.tokens:
            return settings
        own = Token(name=OWN_SERVICES, digest=digest_of(self._own_token), scopes=frozenset({Scope.SERVE}))
        return replace(settings, tokens=(*settings.tokens, own))

    def tell(self) -> None:
        """Say who is let in, and what is amiss with the files."""
        for warning in self._spec.warnings(self._folder):
            self._report(warning)
        names = {token.name for token in self.access.settings.tokens}
        if API_SERVER in names:
            return  # which says it
        tokens = sorted(names - {OWN_SERVICES})
        if not tokens:
            who = "everybody who reaches it" if not is_loopback(self._host) else "everybody on this machine"
            self._report(f"access: {who}; no token is asked for")
            return
        self._report(f"access: with a token ({', '.join(tokens)})")
        if self.tls is None and not is_loopback(self._host):
            self._report("access: tokens and data are sent in clear; name a certificate in `tls` of `access`")

    def close(self) -> None:
        """Write what is still to be written of the audit log."""
        self.access.close()
