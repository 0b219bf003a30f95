"""What a person says of their token and of TLS, as clients and service instances take it."""

from __future__ import annotations

from pathlib import Path

from llama_deploy.cli.settings import Settings
from llama_deploy.runtime.credentials import Credentials


def credentials_of(settings: Settings) -> Credentials:
    """What the settings say of the token and of TLS; the environment says the rest."""
    return Credentials(
        token=settings.token,
        token_file=Path(settings.token_file) if settings.token_file else None,
        ca_file=Path(settings.ca_file) if settings.ca_file else None,
        verify=not settings.insecure,
    )
