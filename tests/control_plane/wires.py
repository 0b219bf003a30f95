"""The ways between control planes in one process, for tests: frames in order, each way, that a test can cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.counting import CountingPort
from llama_deploy.control_plane.leadership import Member
from llama_deploy.messages.counting import decode_counting_frame, decode_telling_frame
from llama_deploy.messages.frames import encode_frame


class Wires:
    """Connects the control planes that it knows with each other."""

    def __init__(self) -> None:
        self.planes: dict[str, ControlPlane] = {}
        self.wires: list[Wire] = []
        self.sent = 0
        """Operations that were sent, both ways."""
        self.cut: set[str] = set()
        """Names of those that nobody reaches, and that reach nobody."""

    def join(self, name: str, plane: ControlPlane) -> None:
        """One more, that has not started yet."""
        self.planes[name] = plane
        assert plane.counting is not None
        plane.counting.connect = lambda member, *told: self._connect(name, member, *told)

    def _connect(self, name: str, member: Member, *told: Callable[..., None]) -> Wire:
        wire = Wire(self, name, member, told)
        self.wires.append(wire)
        return wire

    def cut_off(self, name: str) -> None:
        """Its connections are lost, and cannot be made again."""
        self.cut.add(name)
        for wire in self.wires:
            wire.check()

    def mend(self, name: str) -> None:
        """It is reached again."""
        self.cut.discard(name)
        for wire in self.wires:
            wire.check()


class Wire:
    """One control plane's way to another one that counts for it."""

    def __init__(self, wires: Wires, name: str, member: Member, told: tuple[Callable[..., None], ...]) -> None:
        self._wires, self._name, self._member = wires, name, member
        self._opened, self._received, self._lost = told
        self._port: CountingPort | None = None
        self._closed = False
        asyncio.get_running_loop().call_soon(self.check)

    def check(self) -> None:
        """Be connected where that is possible, and else not."""
        there = self._wires.planes.get(self._member.name)
        possible = not self._closed and there is not None and there.store.owner == self._member.owner
        possible = possible and not {self._name, self._member.name} & self._wires.cut
        if possible and self._port is None:
            assert there is not None
            assert there.counting is not None
            opened: list[CountingPort] = []

            def answer(operations: list[Any]) -> None:
                self._soon(self._hear, opened[0], encode_frame(operations))

            self._port = there.counting.attach(answer)
            opened.append(self._port)
            self._opened()
        elif not possible and self._port is not None:
            port, self._port = self._port, None
            port.close()
            if not self._closed:
                self._lost()

    def send(self, operations: list[Any]) -> None:
        if self._port is not None:
            self._soon(self._tell, self._port, encode_frame(operations))

    def close(self) -> None:
        self._closed = True
        self.check()

    def _soon(self, function: Callable[[CountingPort, bytes], None], port: CountingPort, frame: bytes) -> None:
        asyncio.get_running_loop().call_soon(function, port, frame)

    def _tell(self, port: CountingPort, frame: bytes) -> None:
        operations = decode_telling_frame(frame)
        self._wires.sent += len(operations)
        if port is self._port:  # what is under way on a connection that is lost does not arrive
            port.receive(operations)

    def _hear(self, port: CountingPort, frame: bytes) -> None:
        operations = decode_counting_frame(frame)
        self._wires.sent += len(operations)
        if port is self._port:
            self._received(operations)
