"""What a deployment file says of who is let in, as frozen values, and what a server is given: the files are read then.

Reading them again is how a token or a certificate changes while the server runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llama_deploy.apiserver.reference import Reference
from llama_deploy.errors import SettingError
from llama_deploy.types.access import (
    AUDIT_BYTES_MAX,
    AUDIT_FILES,
    AccessSettings,
    AuditSettings,
    Scope,
    TLSFiles,
    Token,
    digest_from,
    with_implied,
)
from llama_deploy.types.limits import RateLimit

OTHERS_MAY_READ = 0o077
"""The rights of a file that its owner does not need."""
GROUP_MAY_READ = 0o040
"""What a program is given that reads a file of root's: how Kubernetes mounts a secret."""
STANDARD_OUTPUT = Path("-")
"""Where the audit log goes that is no file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSpec:
    """One token of the file."""

    name: str
    scopes: tuple[Scope, ...]
    where: Reference | None = None
    """Where its text, or its hash, is; None: in `text`."""
    text: str = field(default="", repr=False)
    rate: RateLimit | None = None
    services: frozenset[str] | None = None
    """What may be served with it; None: anything."""

    def tokens(self, base_folder: Path) -> Iterator[Token]:
        """The tokens that are valid under this name: several where a file has several lines. Raises `SettingError`."""
        source = f"token `{self.name}`"
        lines = [self.text]
        if self.where is not None:
            lines = [line.partition("#")[0].strip() for line in self.where.read(base_folder).splitlines()]
            lines = [line for line in lines if line]
            source = f"${self.where.env}" if self.where.env is not None else str(self.where.file)
        if not lines:
            raise SettingError(f"{source} has no token for `{self.name}`", fix="a line is a token, or `sha256:HEX`")
        for line in lines:
            digest = digest_from(line, source=source)
            yield Token(
                name=self.name,
                digest=digest,
                scopes=with_implied(self.scopes),
                rate=self.rate,
                services=self.services,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TLSSpec:
    """The certificate of the server; paths are relative to the deployment file's folder."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSpec:
    """What is written of who did what, and where."""

    record: Literal["changes", "all", "none"] | None = None
    """None: `changes` where there are tokens, else nothing."""
    file: Path | None = None
    bytes_max: int = AUDIT_BYTES_MAX
    files: int = AUDIT_FILES


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessSpec:
    """Who is let in to the server of a deployment."""

    tokens: tuple[TokenSpec, ...] = ()
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    tls: TLSSpec | None = None
    audit: AuditSpec = AuditSpec()

    @property
    def variables(self) -> frozenset[str]:
        """The variables of the environment that hold tokens, which are not for the code of services."""
        return frozenset(
            token.where.env for token in self.tokens if token.where is not None and token.where.env is not None
        )

    def settings(self, base_folder: Path, name: str) -> AccessSettings:
        """What the server of the deployment `name` is given. Raises `SettingError` for what is not there."""
        tokens = tuple(token for spec in self.tokens for token in spec.tokens(base_folder))
        _no_two(tokens)
        tls = None
        if self.tls is not None:
            client_ca = self.tls.client_ca
            tls = TLSFiles(
                certificate=base_folder / self.tls.certificate,
                key=base_folder / self.tls.key,
                client_ca=base_folder / client_ca if client_ca is not None else None,
            )
        return AccessSettings(
            tokens=tokens,
            hosts=self.hosts,
            cors_origins=self.cors_origins,
            tls=tls,
            audit=self._audit(base_folder, name),
        )

    def _audit(self, base_folder: Path, name: str) -> AuditSettings | None:
        record = self.audit.record or ("changes" if self.tokens or self.audit.file is not None else "none")
        if record == "none":
            return None
        file = self.audit.file or Path(".llama_deploy") / f"{name}.audit.jsonl"
        return AuditSettings(
            file=None if file == STANDARD_OUTPUT else base_folder / file,
            reads=record == "all",
            bytes_max=self.audit.bytes_max,
            files=self.audit.files,
        )

    def warnings(self, base_folder: Path) -> list[str]:
        """What a person should know of the files, which stops nothing."""
        files = [base_folder / spec.where.file for spec in self.tokens if spec.where is not None and spec.where.file]
        if self.tls is not None:
            files.append(base_folder / self.tls.key)
        found = []
        for file in files:
            status = file.stat()
            mode = status.st_mode & 0o777
            of_root = status.st_uid == 0 and os.geteuid() != 0
            if mode & (OTHERS_MAY_READ & ~GROUP_MAY_READ if of_root else OTHERS_MAY_READ):
                found.append(f"{file} can be read by others (mode {mode:o}): chmod 600 {file}")
        return found


def _no_two(tokens: tuple[Token, ...]) -> None:
    """Raise `SettingError` where two names have one token: nobody could say who was who."""
    names: dict[bytes, str] = {}
    for token in tokens:
        other = names.setdefault(token.digest, token.name)
        if other != token.name:
            raise SettingError(
                f"the tokens `{other}` and `{token.name}` are the same", fix="make one for each: llamactl tokens create"
            )
