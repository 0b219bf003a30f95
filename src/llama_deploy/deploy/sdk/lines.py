"""Where the parts of a client ask: as the client says that they are parts of, and for as long."""

from __future__ import annotations

from collections.abc import Sequence

from llama_deploy.client import Client
from llama_deploy.deploy.lines import Lines, OwnLine, SharedLines


def control_plane_lines(client: Client) -> Lines:
    """To the control plane. A client with a transport of its own asks by itself: there is nowhere else to ask."""
    return OwnLine(client) if client.settings.own_transport else _to(client.settings.url, client)


def api_server_lines(client: Client) -> Lines:
    """To the API server."""
    settings = client.settings
    return control_plane_lines(client) if settings.api_server_url is None else _to(settings.api_server_url, client)


def _to(url: str | Sequence[str], client: Client) -> Lines:
    return SharedLines(url, timeout_s=client.timeout, credentials=client.credentials)
