"""Ports for servers that tests start, and start again.

They lie below those that the system gives to outgoing connections: none of these can take a port while its server is
away, and nobody who looks for the server there is connected to himself. Each worker of a run has a part of its own.
"""

from __future__ import annotations

import os
import socket
from itertools import chain, islice, repeat
from random import SystemRandom

FIRST, LAST = 10_000, 32_768
WORKERS_MAX = 16


def _candidates() -> chain[int]:
    """The ports of this worker, again and again, from a place drawn at random: another run has the same ones."""
    worker = int("0" + "".join(filter(str.isdigit, os.environ.get("PYTEST_XDIST_WORKER", ""))))
    ports = range(FIRST + worker % WORKERS_MAX, LAST, WORKERS_MAX)
    begin = SystemRandom().randrange(len(ports))
    return chain.from_iterable(repeat([*ports[begin:], *ports[:begin]]))


_left = _candidates()


def free_port() -> int:
    """A loopback port on which nothing listens now, and which this process has not been given before."""
    for port in islice(_left, LAST - FIRST):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("no port is free")
