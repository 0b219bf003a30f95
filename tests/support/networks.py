"""Networks for tests in which parts run apart and the way between any two of them can be cut, without a word to either.

With root's rights on Linux each part has a network namespace of its own, and a router stands between them: a cut is a
rule of the router that drops what goes from one to the other, so that connections are neither closed nor refused, and
go on where they stood when the rule is gone. Elsewhere everything runs on the loopback and speaks through proxies that
hold what they are given; `kind` says which of the two it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.support.proxy import Proxy

Link = tuple[str, str]
"""Two parts, in alphabetical order."""

_BLOCKS = [(high, low) for high in (18, 19) for low in range(256)]
"""Networks of 256 addresses in 198.18.0.0/15, which is set aside for tests of networks."""
_NAMED = "llama-test"
_FOLDER = Path("/run/netns")


def link(one: str, other: str) -> Link:
    """The way between two parts, whichever is named first."""
    return (one, other) if one < other else (other, one)


class Network(ABC):
    """Where parts run and how they reach each other."""

    kind: str

    @abstractmethod
    async def start(self, parts: Sequence[str]) -> None:
        """Make it, for these parts. The program that calls reaches all of them at any time."""

    @abstractmethod
    async def remove(self) -> None:
        """Take it away, and with it every process that still runs within a part."""

    @abstractmethod
    def inside(self, part: str) -> list[str]:
        """What stands before a command so that it runs in a part."""

    @abstractmethod
    def host(self, part: str) -> str:
        """The address at which servers of a part listen, and at which the calling program reaches them."""

    @abstractmethod
    async def reach(self, part: str, port: int, *, of: str) -> tuple[str, int]:
        """Host and port at which `part` reaches the server at `port` of the part `of`."""

    @abstractmethod
    async def cut(self, way: Link) -> None:
        """Let nothing pass between two parts. Nobody is told."""

    @abstractmethod
    async def join(self, way: Link) -> None:
        """Let everything pass again."""


class Loopback(Network):
    """All parts on this machine's loopback, with proxies between them."""

    kind = "proxies"

    def __init__(self) -> None:
        self._proxies: dict[tuple[str, str, int], tuple[Proxy, asyncio.Server]] = {}

    async def start(self, parts: Sequence[str]) -> None:
        """There is nothing to make."""

    async def remove(self) -> None:
        for proxy, server in self._proxies.values():
            server.close()
            proxy.let_go()
            proxy.cut()
        await asyncio.sleep(0)  # let the connections end

    def inside(self, part: str) -> list[str]:
        return []

    def host(self, part: str) -> str:
        return "127.0.0.1"

    async def reach(self, part: str, port: int, *, of: str) -> tuple[str, int]:
        known = self._proxies.get((part, of, port))
        if known is None:
            proxy = Proxy(port)
            server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
            proxy.port = server.sockets[0].getsockname()[1]
            known = self._proxies[part, of, port] = (proxy, server)
        return "127.0.0.1", known[0].port

    def _between(self, way: Link) -> Iterable[Proxy]:
        return [proxy for (part, of, _), (proxy, _) in self._proxies.items() if link(part, of) == way]

    async def cut(self, way: Link) -> None:
        for proxy in self._between(way):
            proxy.hold()

    async def join(self, way: Link) -> None:
        for proxy in self._between(way):
            proxy.let_go()


class Namespaces(Network):
    """A network namespace for each part, and one for the router between them."""

    kind = "namespaces"

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._name = ""
        self._block = ""

    @staticmethod
    def possible() -> bool:
        """Whether this machine lets us: Linux, root's rights, and the programs of Debian's iproute2."""
        if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
            return False
        probe = f"{_NAMED}-probe-{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode == 0
        if made:
            subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
        return made

    async def start(self, parts: Sequence[str]) -> None:
        self._parts = list(parts)
        for high, low in _BLOCKS:
            name = f"{_NAMED}-{high}-{low}"
            if await _tried("ip", "netns", "add", name):  # refused where somebody has the block
                self._name, self._block = name, f"198.{high}.{low}"
                break
        else:
            raise AssertionError("every network for tests is taken: `ip netns list`")
        await self._connect_caller()
        for number, part in enumerate(parts, start=1):
            await self._connect_part(number, part)
        await _run("ip", "netns", "exec", self._name, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    @property
    def _router_at_caller(self) -> str:
        return "lt" + self._block.partition(".")[2].replace(".", "x")

    async def _connect_caller(self) -> None:
        """The program that calls is at address .1 and sees the whole block; the router is at .2."""
        here, there = self._router_at_caller, "caller"
        await _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self._name)
        await _run("ip", "address", "add", f"{self._block}.1/32", "peer", f"{self._block}.2", "dev", here)
        await _run("ip", "link", "set", here, "up")
        await _run("ip", "route", "add", f"{self._block}.0/24", "via", f"{self._block}.2", "dev", here)
        inside = ("ip", "-n", self._name)
        await _run(*inside, "address", "add", f"{self._block}.2/32", "peer", f"{self._block}.1", "dev", there)
        await _run(*inside, "link", "set", there, "up")

    async def _connect_part(self, number: int, part: str) -> None:
        space, router, near = self._space(part), ("ip", "-n", self._name), f"p{number}"
        await _run("ip", "netns", "add", space)
        await _run(*router, "link", "add", near, "type", "veth", "peer", "name", "out", "netns", space)
        gateway = f"{self._block}.{4 * number + 1}"
        await _run(*router, "address", "add", gateway, "peer", self.host(part), "dev", near)
        await _run(*router, "link", "set", near, "up")
        own = ("ip", "-n", space)
        await _run(*own, "address", "add", self.host(part), "peer", gateway, "dev", "out")
        await _run(*own, "link", "set", "out", "up")
        await _run(*own, "link", "set", "lo", "up")
        await _run(*own, "route", "add", "default", "via", gateway)

    def _space(self, part: str) -> str:
        return f"{self._name}-{part}"

    async def remove(self) -> None:
        for part in self._parts:
            said = await _said("ip", "netns", "pids", self._space(part))
            for pid in said.split():
                with contextlib.suppress(ProcessLookupError):  # what a broker has left: it runs nowhere else
                    os.kill(int(pid), signal.SIGKILL)
            await _tried("ip", "netns", "delete", self._space(part))
        if self._name:
            await _tried("ip", "netns", "delete", self._name)
            await _tried("ip", "link", "delete", self._router_at_caller)  # it goes by itself, but later

    def inside(self, part: str) -> list[str]:
        return ["nsenter", f"--net={_FOLDER / self._space(part)}"]

    def host(self, part: str) -> str:
        return f"{self._block}.{4 * (self._parts.index(part) + 1) + 2}"

    async def reach(self, part: str, port: int, *, of: str) -> tuple[str, int]:
        return self.host(of), port

    async def cut(self, way: Link) -> None:
        await self._rules("add", way)

    async def join(self, way: Link) -> None:
        await self._rules("delete", way)

    async def _rules(self, what: str, way: Link) -> None:
        for one, other in (way, way[::-1]):
            where = ("from", self.host(one), "to", self.host(other))
            await _run("ip", "-n", self._name, "rule", what, "priority", "100", *where, "blackhole")


def network() -> Network:
    """The best that this machine allows."""
    return Namespaces() if Namespaces.possible() else Loopback()


async def _said(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    return out.decode()


async def _tried(*command: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 0, f"{' '.join(command)}: {said.decode().strip()}"
