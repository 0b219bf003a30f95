"""Worker processes for services whose code has to be stoppable: one per concurrent step, used again, killed if need be.

The code runs in a process of its own and process group, so it can be killed with all that it has started, and its
crash is a failure of one attempt. This process keeps the connection: whatever the code asks for goes through here.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import socket
import sys
from collections import deque
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from llama_deploy.errors import LlamaDeployError, ServiceStartError, SettingError, WorkerDiedError
from llama_deploy.runtime.lifeline import Guard
from llama_deploy.runtime.logs import get_logger
from llama_deploy.runtime.programs import end_program, kill_group, signal_name, start_program
from llama_deploy.services import pipes
from llama_deploy.services.base import StepContext
from llama_deploy.services.desk import Desk
from llama_deploy.services.worker_contents import Lending
from llama_deploy.types import TaskResult

log = get_logger("llama_deploy.worker")

START_S = 60.0
"""How long a worker may take to import what it serves."""
SAID_LINES_MAX = 20
"""So many of the last lines that a worker wrote are kept for the error that tells of its death."""
LINE_BYTES_MAX = 8_192

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from llama_deploy.services.worker import main
main(*sys.argv[1:])
"""
_guard = Guard()
"""Kills what is left of the workers when this process dies in whatever way."""
atexit.register(_guard.stop)


def importable(function: Any, name: str) -> tuple[str, str, str]:
    """Module, qualified name and file of a function. Raises `SettingError` where another process cannot import it."""
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    loaded = sys.modules.get(module or "")
    file = getattr(loaded, "__file__", None) or ""
    if not module or "<" in qualname or not qualname or (module == "__main__" and not file):
        raise SettingError(
            f"the service {name!r} cannot run in a process of its own",
            why=f"{qualname or function!r} of {module} cannot be imported by name",
            fix="define the function at the top level of a module",
        )
    return module, qualname, str(Path(file).resolve()) if file else ""


class WorkerProcesses:
    """The worker processes of one service."""

    def __init__(self, function: Any, *, name: str, count: int) -> None:
        """Raises `SettingError` for a function that cannot be imported."""
        self._what = importable(function, name)
        self._name = name
        self._count = count
        self._idle: list[_Process] = []
        self._all: dict[_Process, None] = {}

    async def start(self) -> None:
        """Start the first worker. Raises `ServiceStartError` where it cannot import the function."""
        self._idle.append(await self._new())

    async def stop(self) -> None:
        """End every worker, whatever it does."""
        for process in tuple(self._all):
            process.kill()
        await asyncio.gather(*(process.ended() for process in tuple(self._all)))
        self._idle.clear()

    async def run(self, context: StepContext) -> TaskResult:
        """Have a worker work on an attempt. Raises `WorkerDiedError` when it dies of it.

        When the caller is cancelled, the code is told so and waited for; cancelled once more, it is killed.
        """
        process = await self._take()
        try:
            return await process.work(context)
        except asyncio.CancelledError:
            process.cancel()
            try:
                await process.idle()
            except asyncio.CancelledError:
                process.kill()
                raise
            raise
        finally:
            if process.alive and not process.busy and len(self._idle) < self._count:
                self._idle.append(process)
            else:
                process.kill()

    async def _take(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.alive:
                return process
        return await self._new()

    async def _new(self) -> _Process:
        ours, theirs = socket.socketpair()
        ours.settimeout(0.0)
        arguments = [json.dumps(sys.path), str(theirs.fileno()), *self._what, self._name]
        _guard.start()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            child = await start_program(
                sys.executable,
                "-c",
                _PROGRAM,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            writer.close()
            raise
        finally:
            theirs.close()
        _guard.watch(child.pid)
        process = _Process(self._name, child, reader, writer)
        self._all[process] = None
        process.gone.add_done_callback(lambda _: self._all.pop(process, None))
        try:
            async with asyncio.timeout(START_S):
                problem = await process.ready
        except TimeoutError:
            problem = f"it was not ready within {START_S:g} s"
        except asyncio.CancelledError:  # nobody has it to give it back
            process.kill()
            raise
        if problem:
            process.kill()
            await process.ended()
            raise ServiceStartError(
                f"the service {self._name!r} cannot run in a process of its own",
                why=problem,
                fix="see that its module can be imported, and does not start anything when it is",
            )
        return process


class _Process:
    """One worker process, as its parent sees it."""

    def __init__(
        self,
        service: str,
        child: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._service = service
        self._child = child
        self._reader = reader
        self._writer = writer
        self._said: deque[str] = deque(maxlen=SAID_LINES_MAX)
        self._lending = Lending(partial(pipes.write, writer))
        self._context: StepContext | None = None
        self._result: asyncio.Future[TaskResult] | None = None
        self._done: asyncio.Future[None] | None = None
        self._killed = False
        self.ready: asyncio.Future[str] = loop.create_future()
        """Why it is not usable; empty where it is."""
        self.gone: asyncio.Future[None] = loop.create_future()
        self._tasks = [
            loop.create_task(self._listen()),
            loop.create_task(self._log_lines(child.stdout, "stdout")),
            loop.create_task(self._log_lines(child.stderr, "stderr")),
        ]

    @property
    def alive(self) -> bool:
        """Whether it can be given work."""
        return not self._killed and not self.gone.done()

    @property
    def busy(self) -> bool:
        """Whether it works on an attempt."""
        return self._context is not None

    async def ended(self) -> None:
        """Until the process has ended and all that it said is read."""
        await asyncio.wait([self.gone])

    async def idle(self) -> None:
        """Until it has ended what it works on, or itself."""
        if self._done is not None:
            await asyncio.shield(self._done)

    async def work(self, context: StepContext) -> TaskResult:
        """Work on one attempt."""
        loop = asyncio.get_running_loop()
        self._context, self._result, self._done = context, loop.create_future(), loop.create_future()
        given = [context.inputs.get_nowait() for _ in range(context.inputs.qsize())]
        desk = context.desk
        start = pipes.Start(
            context.step_id,
            context.attempt,
            context.task_id,
            context.session_id,
            context.service,
            context.action,
            msgspec.json.encode(context.data),
            [msgspec.json.encode(value) for value in given],
            context.snapshot,
            context.run_timeout_s,
            dict(desk.all_remembered()),
            desk.last_heartbeat,
            context.kept_memory is not None,
            context.kept_memory.given if context.kept_memory is not None else None,
        )
        pipes.write(self._writer, "run", start)
        inputs = loop.create_task(self._pass_inputs(context))
        try:
            return await self._result
        finally:
            inputs.cancel()

    def cancel(self) -> None:
        """Tell the code to stop."""
        if self.alive:
            pipes.write(self._writer, "cancel")

    def kill(self) -> None:
        """End the process and all that it has started, now. Repeating it does nothing."""
        if self._killed:
            return
        self._killed = True
        kill_group(self._child)

    async def _pass_inputs(self, context: StepContext) -> None:
        while True:
            pipes.write(self._writer, "input", msgspec.json.encode(await context.inputs.get()))

    # --- what it says -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            while True:
                kind, *rest = await pipes.read(self._reader)
                self._take(kind, rest)
        except (EOFError, msgspec.DecodeError):
            pass
        self.kill()  # it may have closed its end only, and what it has started is to go as well
        code = await end_program(self._child)
        _guard.forget(self._child.pid)
        await asyncio.gather(*self._tasks[1:])
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self._died(code)

    def _died(self, code: int) -> None:
        what = f"signal {signal_name(-code)}" if code < 0 else f"exit code {code}"
        last = "\n".join(self._said)
        if not self.ready.done():
            self.ready.set_result(f"its process ended with {what}" + (f":\n{last}" if last else ""))
        if self._result is not None and not self._result.done():
            step = self._context.step_id if self._context is not None else ""
            self._result.set_exception(
                WorkerDiedError(
                    f"the worker process of {self._service!r} ended with {what} while it worked on {step}",
                    why=last or "it wrote nothing",
                    fix="look at what it does with memory and with native code",
                    exit_code=code,
                )
            )
        self._end_work()
        self.gone.set_result(None)

    def _end_work(self) -> None:
        self._context = None
        self._lending.end()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _take(self, kind: str, rest: list[Any]) -> None:
        context = self._context
        if kind in ("ready", "broken"):
            if not self.ready.done():  # else nobody waits for it any more
                self.ready.set_result(rest[0] if rest else "")
        elif context is None:
            return
        elif kind == "result":
            if rest[1] is not None and context.kept_memory is not None:
                context.kept_memory.replace(rest[1])
            if self._result is not None and not self._result.done():
                self._result.set_result(TaskResult.model_validate_json(rest[0]))
            self._end_work()
        elif kind == "part":
            self._lending.take(*rest)
        else:
            self._take_wish(context, kind, rest)

    def _take_wish(self, context: StepContext, kind: str, rest: list[Any]) -> None:
        """What the code wants of the control plane."""
        if kind == "event":
            context.stream(msgspec.json.decode(rest[0]))
        elif kind == "ask":
            context.request_input(msgspec.json.decode(rest[0]))
        elif kind == "beat":
            context.desk.heartbeat(rest[0])
        elif kind == "end_call":
            context.desk.end_call(rest[0])
        elif kind in ("keep", "piece"):
            work = self._lending.asked(context.contents, kind, *rest)
            work.add_done_callback(partial(self._reply, rest[0]))
        else:
            number, key, value = rest
            answer = self._asked(context.desk, kind, key, value)
            loop = asyncio.get_running_loop()
            answer.add_done_callback(lambda done: loop.call_soon_threadsafe(partial(self._reply, number, done)))

    @staticmethod
    def _asked(desk: Desk, kind: str, key: str, value: bytes) -> Future[Any]:
        if kind == "ledger":
            return desk.read_ledger(key, int(value))
        return desk.remember(key, value) if kind == "remember" else desk.call(key, value)

    def _reply(self, number: int, done: Future[Any] | asyncio.Task[Any]) -> None:
        if done.cancelled() or not self.alive:
            return
        error = done.exception()
        problem = b""
        if error is not None:
            told = error if isinstance(error, LlamaDeployError) else LlamaDeployError(repr(error))
            problem = msgspec.json.encode(told.to_problem())
        value = None if error is not None else done.result()
        if value is not None and not isinstance(value, bytes):
            value = msgspec.to_builtins(value, builtin_types=(bytes,))
        pipes.write(self._writer, "reply", number, value, problem)

    async def _log_lines(self, stream: asyncio.StreamReader | None, name: str) -> None:
        """Pass on what the code writes, line by line, with the step that it belongs to."""
        assert stream is not None, "it was started with a pipe"
        rest = b""
        while data := await stream.read(65_536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._line(line, name)
            if len(rest) > LINE_BYTES_MAX:
                self._line(rest, name)
                rest = b""
        if rest:
            self._line(rest, name)

    def _line(self, line: bytes, name: str) -> None:
        text = line[:LINE_BYTES_MAX].decode("utf-8", "backslashreplace")
        self._said.append(text)
        step_id = self._context.step_id if self._context is not None else ""
        log.info(text, service=self._service, step_id=step_id, stream=name)
