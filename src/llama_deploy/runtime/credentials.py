"""How a client or a service instance makes itself known, and whom it believes: its token and its TLS.

Values come from arguments, else from the environment. A token from a file is read for each connection, so that a new
one counts without a restart. Nothing here shows a token, in an error, a log line, or the text of an object.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama_deploy.errors import SettingError

if TYPE_CHECKING:
    import ssl

TOKEN_VARIABLE = "LLAMA_DEPLOY_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_VARIABLE = "LLAMA_DEPLOY_TOKEN_FILE"  # noqa: S105 - the name of a variable
CA_VARIABLE = "LLAMA_DEPLOY_CA_FILE"
CERTIFICATE_VARIABLE = "LLAMA_DEPLOY_CLIENT_CERTIFICATE_FILE"
KEY_VARIABLE = "LLAMA_DEPLOY_CLIENT_KEY_FILE"
INSTANCE_TOKEN_VARIABLE = "LLAMA_DEPLOY_INSTANCE_TOKEN"  # noqa: S105 - the name of a variable
"""What a server gives to the services that it starts itself; it allows nothing but serving."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """A token, as text or in a file, and the files for TLS: authorities that are believed beside the system's
    own, and the certificate that is shown to servers that ask for one.

    `verify=False` believes any server: whoever stands between can read everything, the token too.
    """

    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    """Of `certificate_file`; None where it is in the same file."""
    verify: bool = True

    def with_environment(self, environment: Mapping[str, str] | None = None) -> Credentials:
        """These, and what the environment says where they say nothing."""
        found = os.environ if environment is None else environment
        token, token_file = self.token, self.token_file
        if token is None and token_file is None:
            token = found.get(TOKEN_VARIABLE) or None
            token_file = _path(found.get(TOKEN_FILE_VARIABLE)) if token is None else None
        own_certificate = self.certificate_file is not None
        return replace(
            self,
            token=token,
            token_file=token_file,
            ca_file=self.ca_file or _path(found.get(CA_VARIABLE)),
            certificate_file=self.certificate_file or _path(found.get(CERTIFICATE_VARIABLE)),
            key_file=self.key_file if own_certificate else self.key_file or _path(found.get(KEY_VARIABLE)),
        )

    def checked(self) -> Credentials:
        """These, once every file was read. Raises `SettingError` for one that is not there or cannot be used."""
        self.headers()
        if self.ca_file is not None or self.certificate_file is not None:
            self.ssl_context()
        return self

    def headers(self) -> dict[str, str]:
        """The header that shows the token; none without one. Raises `SettingError` for one that cannot be sent."""
        token = self._current()
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _current(self) -> str | None:
        source = "the token"
        token = self.token
        if token is None and self.token_file is not None:
            source = f"the token in {self.token_file}"
            try:
                token = self.token_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not text"
                raise SettingError(f"the file {self.token_file} of a token cannot be read", why=str(why)) from None
        if token is None:
            return None
        token = token.strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise SettingError(
                f"{source} cannot be sent", why="a token is one word of ASCII characters", fix="ask who runs the server"
            )
        return token

    def ssl_context(self) -> ssl.SSLContext:
        """What to speak TLS with: version 1.2 or later. Raises `SettingError` for a file that cannot be used."""
        import ssl

        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            if self.ca_file is not None:
                context.load_verify_locations(self.ca_file)
        except (OSError, ValueError) as error:
            raise _unusable("the authorities in", self.ca_file, error) from error
        try:
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file, password=_no_password)
        except (OSError, ValueError) as error:
            raise _unusable("the certificate", self.certificate_file, error) from error
        return context


def known_by(token: str | None, credentials: Credentials | None, *, verify: bool = True) -> Credentials:
    """What somebody says of themselves, as text or in full, and what the environment says beside it."""
    said = credentials or Credentials()
    if not verify:
        said = replace(said, verify=False)
    return (said if token is None else replace(said, token=token, token_file=None)).with_environment()


def new_token() -> str:
    """A token that nobody can guess: 256 bits."""
    return f"ld_{secrets.token_urlsafe(32)}"


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _no_password() -> str:
    raise ValueError("the key has a password")


def _unusable(what: str, file: Path | None, error: Exception) -> SettingError:
    reason = getattr(error, "strerror", None) or str(error)
    return SettingError(f"{what} {file} cannot be used", why=reason, fix="name a file in the format PEM")
