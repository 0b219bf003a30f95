"""Programs that an API server runs to make a version: `git`, `uv`, checks. None of them outlives the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_deploy.runtime.lifeline import Guard
from llama_deploy.runtime.programs import end_program, start_program

OUTPUT_BYTES_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    code: int
    out: str
    err: str
    timed_out: bool = False


class Commands:
    """Runs programs in process groups of their own, which end with the server that `guard` guards."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def run(
        self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout_s: float
    ) -> Ran:
        """Run a program to its end; when it takes too long, or this is canceled, it and all it has started is killed.

        Raises `OSError` where there is no such program.
        """
        process = await start_program(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env=dict(environment),
        )
        self._guard.watch(process.pid)
        timed_out = False
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    out, err = await process.communicate()
            except TimeoutError:
                timed_out, out, err = True, b"", b""
        finally:
            await end_program(process)
            self._guard.forget(process.pid)
        return Ran(process.returncode or 0, _text(out), _text(err), timed_out)


def _text(data: bytes) -> str:
    return data[-OUTPUT_BYTES_MAX:].decode("utf-8", "replace").strip()
