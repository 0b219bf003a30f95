"""Who works at this terminal, as it is recorded with what they do."""

from __future__ import annotations

import getpass
import socket


def who() -> str:
    """`user@host`, or the host alone where the user has no name (a container with a number only)."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return socket.gethostname()
