"""How the place where a control plane listens is written as a URL, and where this machine reaches it.

Pure functions of text; nothing is looked up or connected to.
"""

from __future__ import annotations

import contextlib
import ipaddress


def url_of(host: str, port: int) -> str:
    """The URL of a server that listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def local_url(url: str) -> str:
    """Where this machine reaches a server that listens on every address; any other URL is what it is."""
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "[::1]"  # noqa: PLR2004 - the version of IP
    return f"{scheme}://{host}:{port}"
