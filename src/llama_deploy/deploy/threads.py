"""A loop in a thread for a blocking client that is never closed: it ends with the client, or with the program."""

from __future__ import annotations

import atexit
import weakref
from functools import partial
from typing import Any

from llama_deploy.client.portal import Portal


def portal_of(owner: Any, name: str) -> Portal:
    """A portal that `owner` alone uses. What it has open is closed when the owner goes, at the latest at exit."""
    portal = Portal(name)
    at_exit = partial(_end, portal)
    atexit.register(at_exit)
    weakref.finalize(owner, _close, portal, at_exit).atexit = False
    return portal


def _close(portal: Portal, at_exit: partial[None]) -> None:
    atexit.unregister(at_exit)
    portal.close()


def _end(portal: Portal) -> None:
    portal.close()
    portal.join()
