"""Services whose functions run in worker processes, which import this module by its name."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from llama_deploy.errors import NonRetryableError, StepCanceledError
from llama_deploy.services import ServiceContext, service
from llama_deploy.types import RetryPolicy
from llama_deploy.types.artifacts import Artifact, File

AGAIN = RetryPolicy(initial_s=0.0, jitter=0.0)


@service(process=True, concurrency=2, retry=AGAIN)
def work(what: str, context: ServiceContext) -> Any:
    """One function for all that a worker has to be able to do."""
    sys.stdout.write(f"working on {what}\n")
    if what == "pid":
        return os.getpid()
    if what == "everything":
        context.stream({"pid": os.getpid()})
        context.heartbeat({"at": "the middle"})
        kept = context.blocking.once("k", lambda: context.attempt)
        doubled = context.blocking.call("double", number=4)
        return [kept, doubled, os.getpid()]
    if what == "ask":
        return [context.blocking.ask("first?"), context.blocking.ask("second?")]
    if what == "exit" and context.attempt == 1:
        sys.stderr.write("goodbye\n")
        sys.stderr.flush()
        os._exit(3)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "nameless":
        os.kill(os.getpid(), signal.SIGRTMIN + 3)
    if what == "raise":
        raise ValueError("no such thing")
    if what == "heed":
        context.blocking.sleep(60)
    if what == "surrogate":
        return os.fsdecode(b"\xff")
    return f"{what} in attempt {context.attempt}"


@service(process=True, concurrency=1)
def lingers(file: str, context: ServiceContext) -> str:
    """Leaves a thread behind that still wants something while the next attempt runs in its process."""

    def late() -> None:
        _wait_for(file)
        context.stream("late")
        context.heartbeat("late")
        try:
            context.blocking.call("double", number=4)
        except StepCanceledError:
            Path(f"{file}.told").touch()

    if context.attempt == 1:
        threading.Thread(target=late, daemon=True).start()
    else:
        Path(file).touch()
        _wait_for(f"{file}.told")
    return "done"


def _wait_for(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.005)


@service(process=True, concurrency=1)
def spin(file: str) -> None:
    """Never looks whether it should stop, and has a child of its own."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(file, "w") as out:  # noqa: PTH123
        out.write(f"{os.getpid()} {child.pid}")
    os.replace(file, file + ".done")  # noqa: PTH105
    while True:
        time.sleep(1)


@service(process=True, concurrency=1, retry=AGAIN)
def files(given: Artifact, what: str, context: ServiceContext) -> Any:
    """Reads a file, writes others: in a thread of a worker."""
    with given.open() as file:
        head = file.read(4)
        file.seek(0)
        content = file.read()
    if what == "path":
        path = Path(tempfile.mkdtemp()) / "twice.bin"
        path.write_bytes(content * 2)
        return {"made": File(path, media_type="application/x-twice"), "head": head.decode("latin-1")}
    if what == "die" and context.attempt == 1:
        context.save_from_thread(content * 3)
        os._exit(1)
    if what == "missing":
        context.save_from_thread("/nothing/here")
    made = context.save_from_thread(iter([content, content]), name="twice.txt")
    context.stream({"made": made})
    return [made, content[:3]]


@service(process=True)
async def size_of(data: bytes) -> int:
    """How much it was given."""
    return len(data)


@service(process=True)
async def waits(context: ServiceContext) -> Any:
    """A coroutine in a worker."""
    return await context.ask("how many?")


@service
async def double(number: int) -> int:
    """Runs in the instance itself."""
    return number * 2


@service(process=True, memory="session")
async def notes(text: str, context: ServiceContext) -> list[str]:
    """Says everything that it was told in this session, from a process of its own."""
    said: list[str] = context.memory.setdefault("said", [])
    said.append(text)
    if text == "fail":
        raise NonRetryableError("no")
    return said
