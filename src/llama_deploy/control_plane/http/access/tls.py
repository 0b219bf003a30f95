"""TLS of a server: the context from the files that the settings name, and the same context with newer files."""

from __future__ import annotations

import ssl

from llama_deploy.errors import SettingError
from llama_deploy.types.access import TLSFiles


def server_context(files: TLSFiles) -> ssl.SSLContext:
    """TLS 1.2 or later with this certificate. Raises `SettingError` where a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, files)
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def renew(context: ssl.SSLContext, files: TLSFiles) -> None:
    """Read the files again: connections that are made from now on get what they say. Raises `SettingError`.

    Files that cannot be used change nothing. Certificates of clients that were let in once are still let in, those
    of newer authorities too.
    """
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    _load(context, files)


def _load(context: ssl.SSLContext, files: TLSFiles) -> None:
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise SettingError(
            f"the certificate {files.certificate} cannot be used with the key {files.key}",
            why=_reason(error),
            fix="name PEM files that belong together, the key without a password, under `tls` of `access`",
        ) from error
    if files.client_ca is None:
        return
    try:
        context.load_verify_locations(files.client_ca)
    except (OSError, ValueError) as error:
        raise SettingError(f"the authorities in {files.client_ca} cannot be used", why=_reason(error)) from error


def _no_password() -> str:
    """Asked for where the key is sealed: nobody is there to type."""
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
