"""The program of a worker process: it imports one function and runs one attempt of a step after the other.

What the function's code asks of the control plane goes through its parent, which holds the connection. The process
ends when its parent does, and takes what it has started along.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import itertools
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from llama_deploy.errors import ResultNotSerialisableError, StepCanceledError
from llama_deploy.messages.frames import Returned
from llama_deploy.services import pipes
from llama_deploy.services.base import StepContext, encode_value, enter_step
from llama_deploy.services.failures import error_from_exception
from llama_deploy.services.function import FunctionService
from llama_deploy.services.memory import StepMemory
from llama_deploy.services.steps import problem_of
from llama_deploy.services.worker_contents import WorkerContents
from llama_deploy.types import TaskResult
from llama_deploy.types.artifacts import artifact_source

MAIN = "__llama_deploy_worker__"
"""Name under which a program is loaded that was started by its file, so that it does not start again."""


def load(module: str, qualname: str, file: str) -> Any:
    """The object that a service was made of. Raises what importing it raises."""
    if module == "__main__":
        found: Any = runpy.run_path(file, run_name=MAIN)
        first, *rest = qualname.split(".")
        found = found[first]
    else:
        try:
            found = importlib.import_module(module)
        except ImportError:
            spec = importlib.util.spec_from_file_location(module, file)
            if spec is None or spec.loader is None:
                raise
            found = sys.modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
        rest = qualname.split(".")
    for name in rest:
        found = getattr(found, name)
    return found.function if isinstance(found, FunctionService) else found


class _Desk:
    """Passes the wishes of one attempt on to the parent."""

    def __init__(self, worker: Worker, start: pipes.Start) -> None:
        self._worker = worker
        self._start = start
        self._memos = start.remembered
        self.last_heartbeat = start.last_heartbeat

    def remembered(self, key: str) -> bytes | None:
        return self._memos.get(key)

    def all_remembered(self) -> Mapping[str, bytes]:
        return self._memos

    def remember(self, key: str, value: bytes) -> Future[bytes]:
        answer = self._worker.ask(self._start, "remember", key, value)
        answer.add_done_callback(lambda done: self._keep(key, done))
        return answer

    def _keep(self, key: str, done: Future[bytes]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._memos[key] = done.result()

    def read_ledger(self, name: str, first: int) -> Future[bytes]:
        return self._worker.ask(self._start, "ledger", name, str(first).encode())

    def call(self, key: str, definition: bytes) -> Future[Returned]:
        return self._worker.ask(self._start, "call", key, definition)

    def end_call(self, key: str) -> None:
        self._worker.say_of(self._start, "end_call", key)

    def heartbeat(self, details: bytes | None) -> None:
        self._worker.say_of(self._start, "beat", details)


class Worker:
    """One worker process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._open: dict[int, Future[Any]] = {}
        self._contents = WorkerContents(self._loop, self.say, self._open, self._numbers)
        self._giving: dict[asyncio.Task[None], None] = {}
        """Parts of contents that are on their way to the parent."""
        self._start: pipes.Start | None = None
        """The present attempt: what code of an earlier one still says is dropped."""
        self._inputs: asyncio.Queue[Any] = asyncio.Queue()
        self._context: StepContext | None = None
        self._task: asyncio.Task[tuple[TaskResult, bytes | None]] | None = None

    def say(self, *message: Any) -> None:
        """Say something to the parent, from whatever thread."""
        self._loop.call_soon_threadsafe(pipes.write, self._writer, *message)

    def say_of(self, start: pipes.Start, *message: Any) -> None:
        """Say something of an attempt, from whatever thread; nothing where that has ended."""
        self._loop.call_soon_threadsafe(self._say_of, start, *message)

    def _say_of(self, start: pipes.Start, *message: Any) -> None:
        if self._start is start:
            pipes.write(self._writer, *message)

    def ask(self, start: pipes.Start, kind: str, key: str, value: bytes) -> Future[Any]:
        """Ask the parent for something that it answers to an attempt."""
        answer: Future[Any] = Future()
        self._loop.call_soon_threadsafe(self._ask, start, answer, kind, key, value)
        return answer

    def _ask(self, start: pipes.Start, answer: Future[Any], kind: str, key: str, value: bytes) -> None:
        if self._start is not start:
            _refuse(answer, "the attempt has ended")
            return
        number = next(self._numbers)
        self._open[number] = answer
        pipes.write(self._writer, kind, number, key, value)

    async def serve(self, service: FunctionService[..., Any]) -> None:
        """Work until the parent has gone."""
        await service.start()
        self.say("ready")
        while True:
            try:
                kind, *rest = await pipes.read(self._reader)
            except EOFError:
                _end()
            if kind == "run":
                self._begin(service, msgspec.convert(rest[0], pipes.Start))
            elif kind == "cancel":
                self._cancel()
            elif kind == "input":
                self._inputs.put_nowait(msgspec.json.decode(rest[0]))
            elif kind == "part":
                giving = self._loop.create_task(self._contents.give(*rest))
                self._giving[giving] = None
                giving.add_done_callback(lambda done: self._giving.pop(done, None))
            elif kind == "reply":
                self._reply(*rest)

    def _begin(self, service: FunctionService[..., Any], start: pipes.Start) -> None:
        """From here on it is the present attempt, whatever is said of it before its code runs."""
        self._start, self._context = start, None
        self._inputs = asyncio.Queue()
        for value in start.inputs:
            self._inputs.put_nowait(msgspec.json.decode(value))
        self._task = self._loop.create_task(self._run(service, start))
        self._task.add_done_callback(partial(self._ended, start))

    def _cancel(self) -> None:
        if self._context is not None:
            self._context.mark_canceled()
        if self._task is not None:
            self._task.cancel()
        self._refuse_all("the attempt was canceled")

    def _refuse_all(self, why: str) -> None:
        waiting = tuple(self._open.values())
        self._open.clear()
        for answer in waiting:
            _refuse(answer, why)

    def _reply(self, number: int, value: Any, problem: bytes) -> None:
        answer = self._open.pop(number, None)
        if answer is None or answer.done():
            return
        error = problem_of(problem)
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(msgspec.convert(value, Returned) if isinstance(value, list) else value)

    async def _run(self, service: FunctionService[..., Any], start: pipes.Start) -> tuple[TaskResult, bytes | None]:
        memory = None
        try:
            context = self._enter(start)
            result = await service.run(context)
            memory = context.kept_memory.changed() if context.kept_memory is not None else None
        except asyncio.CancelledError as error:
            canceled = self._context is not None and self._context.canceled
            result = _failed(StepCanceledError("the attempt was canceled") if canceled else error)
        except BaseException as error:  # noqa: BLE001 - the edge of user code; recorded with the task
            result = _failed(error)
        return result, memory

    def _ended(self, start: pipes.Start, task: asyncio.Task[tuple[TaskResult, bytes | None]]) -> None:
        """Say what came of an attempt, after all that its code has said; it may have been canceled before it ran."""
        canceled = _failed(StepCanceledError("the attempt was canceled"))
        result, memory = (canceled, None) if task.cancelled() else task.result()
        try:
            encoded = msgspec.json.encode(result.model_dump())
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            unfit = ResultNotSerialisableError("the service's result cannot be recorded", why=str(error))
            encoded, memory = msgspec.json.encode(_failed(unfit).model_dump()), None
        self._say_of(start, "result", encoded, memory)
        self._start = self._context = None
        self._refuse_all("the attempt has ended")

    def _enter(self, start: pipes.Start) -> StepContext:
        context = self._context = StepContext(
            step_id=start.step_id,
            attempt=start.attempt,
            task_id=start.task_id,
            session_id=start.session_id,
            service=start.service,
            action=start.action,
            data=msgspec.json.decode(start.data),
            emit=lambda event: self.say_of(start, "event", event),
            ask=lambda prompt: self.say_of(start, "ask", encode_value(prompt)),
            inputs=self._inputs,
            inputs_given=len(start.inputs),
            snapshot=start.snapshot,
            run_timeout_s=start.run_timeout_s,
            desk=_Desk(self, start),
            contents=self._contents,
            memory=StepMemory(start.memory) if start.keeps_memory else None,
        )
        enter_step(context)
        artifact_source.set(self._contents)
        return context


def _refuse(answer: Future[Any], why: str) -> None:
    if not answer.done():
        answer.set_exception(StepCanceledError(why))


def _failed(error: BaseException) -> TaskResult:
    found = error_from_exception(error)
    return TaskResult(task_id="", history=[], result=found.message, status="failed", error=found)


async def _main(pipe: socket.socket, module: str, qualname: str, file: str, name: str) -> None:
    reader, writer = await asyncio.open_connection(sock=pipe)
    try:
        service = FunctionService(load(module, qualname, file), name=name)
    except BaseException as error:  # noqa: BLE001 - whatever the module does; told to who starts the service
        pipes.write(writer, "broken", f"{type(error).__name__}: {error}")
        await writer.drain()
        return
    await Worker(reader, writer).serve(service)


def main(number: str, module: str, qualname: str, file: str, name: str) -> None:
    """Run until the parent has gone; then the whole group of this process goes, be it busy or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = socket.socket(fileno=int(number))
    pipe.settimeout(0.0)
    if file:
        sys.argv[:] = [str(Path(file))]
    asyncio.run(_main(pipe, module, qualname, file, name))
    _end()


def _end() -> NoReturn:
    """End this process with whatever it still does, and with what it has started."""
    sys.stdout.flush()
    os.killpg(0, signal.SIGKILL)
    raise SystemExit  # it is gone by now
