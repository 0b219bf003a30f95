"""Functions as services: the `service` decorator, and the adapter that calls a function with a task's input.

Everything that the signature says is worked out when the function is decorated, so that a call costs little more than
the function itself. How input becomes arguments is in `arguments`, how the return value becomes a result in `results`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, overload

from llama_deploy.errors import SettingError
from llama_deploy.services.arguments import Arguments, UnresolvedAnnotationError, read_signature, return_schema
from llama_deploy.services.base import Service, StepContext
from llama_deploy.services.keeping import filled, result_of
from llama_deploy.services.threads import WorkerThreads
from llama_deploy.types import ActionTypes, RetryPolicy, ServiceDefinition, ServiceLimits, TaskResult

if TYPE_CHECKING:
    from llama_deploy.services.processes import WorkerProcesses

P = ParamSpec("P")
R = TypeVar("R")

_NEW_TASK = ActionTypes.NEW_TASK.value


class FunctionService(Service, Generic[P, R]):
    """A function, served. Calling the object calls the plain function.

    An async function runs on the event loop; any other runs in a thread of the service's own, at most `concurrency`
    at a time. The yields of a generator, async or not, are streamed as events as they happen, and the list of them is
    the result; a generator that returns a value (not None) has that as its result.

    A parameter annotated `ServiceContext` is given the context of the attempt and is no part of the input. When the
    attempt is cancelled, the coroutine is cancelled; a thread cannot be, and sees `context.canceled`.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        concurrency: int = 8,
        run_timeout_s: float = 600.0,
        retry: RetryPolicy | None = None,
        limits: ServiceLimits | None = None,
        process: bool = False,
        memory: Literal["none", "session", "task"] = "none",
        local_names: Mapping[str, Any] | None = None,
    ) -> None:
        """`name` is the function's own unless given, `description` the first paragraph of its docstring.

        With `process` the function runs in worker processes, one for each step at once: it can be killed when it does
        not stop, and its crash is a failure of one attempt. It has to be importable by name.

        `local_names` resolves annotations written as strings for a function that is defined inside another one.
        Raises `SettingError` for a signature that no input can fill.
        """
        functools.update_wrapper(self, function)
        self.function = function
        self.definition = ServiceDefinition(
            service_name=name or _own_name(function),
            description=_summary(function) if description is None else description,
            kind="function",
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
            retry=retry,
            limits=limits,
            memory=memory,
        )
        self._style = _style(function)
        self._local_names = local_names
        self._arguments: Arguments | None = None
        self._threads: WorkerThreads | None = None
        self.can_kill = process
        self._processes: WorkerProcesses | None = None
        with contextlib.suppress(UnresolvedAnnotationError):  # it may name what the module defines further down:
            self.prepare()  # this is called again before the first step

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The plain function, outside of any task."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<service {self.definition.service_name!r}: {self.function!r}>"

    def prepare(self) -> Arguments:
        """Work out the signature, once. Raises `UnresolvedAnnotationError` while an annotation names nothing."""
        if self._arguments is None:
            arguments = read_signature(self.function, self.definition.service_name, self._local_names)
            self.definition.input_schema = arguments.schema
            self.definition.output_schema = return_schema(
                self.function, self._local_names, is_generator="generator" in self._style
            )
            self._arguments = arguments
            self._local_names = None  # they are not kept alive any longer than needed
        return self._arguments

    async def start(self) -> None:
        self.prepare()
        if self.can_kill:
            from llama_deploy.services.processes import WorkerProcesses

            name, count = self.definition.service_name, self.definition.concurrency
            self._processes = WorkerProcesses(self.function, name=name, count=count)
            await self._processes.start()
        elif self._style in ("function", "generator"):
            self._threads = WorkerThreads(name=self.definition.service_name, count=self.definition.concurrency)
            self._threads.returned = self._thread_returned

    async def stop(self) -> None:
        if self._processes is not None:
            processes, self._processes = self._processes, None
            await processes.stop()
        if self._threads is not None:
            self._threads.stop()
            self._threads = None

    def _thread_returned(self) -> None:
        self.left_behind_changed()  # which the runner may set after the threads were made

    @property
    def left_behind(self) -> int:
        return self._threads.given_up if self._threads is not None else 0

    async def run(self, context: StepContext) -> TaskResult:
        """Call the function. Raises `ArgumentsError`, `ResultNotSerialisableError`, and what the function raises."""
        arguments = self._arguments or self.prepare()
        if self._processes is not None:
            return await self._processes.run(context)
        if context.action == _NEW_TASK:
            args, kwargs = arguments.from_text(context.input, context)
        else:
            args, kwargs = arguments.from_object(context.data, context)
        return await result_of(await self.invoke(args, kwargs, context), context)

    async def invoke(self, args: list[Any], kwargs: dict[str, Any], context: StepContext) -> Any:
        """Call the function with arguments that fit it; its value as it is, for a generator the list of its yields."""
        function: Callable[..., Any] = self.function
        if self._arguments is not None and self._arguments.bytes_names:
            args, kwargs = await filled(args, kwargs, self._arguments.bytes_names)
        if self._style == "coroutine":
            return await function(*args, **kwargs)
        if self._style == "async generator":
            return await _stream_async(function(*args, **kwargs), context)
        return await self._run_in_thread(functools.partial(function, *args, **kwargs), context)

    async def _run_in_thread(self, call: Callable[[], Any], context: StepContext) -> Any:
        if self._threads is None:
            await self.start()
        assert self._threads is not None
        value = await self._threads.call(
            functools.partial(_call_in_thread, call, context), canceled=context.mark_canceled
        )
        if inspect.isawaitable(value):  # a plain function that hands out a coroutine
            return await value
        return await _stream_async(value, context) if isinstance(value, AsyncIterator) else value


@overload
def service(function: Callable[P, R], /) -> FunctionService[P, R]: ...


@overload
def service(
    *,
    name: str | None = None,
    description: str | None = None,
    concurrency: int = 8,
    run_timeout_s: float = 600.0,
    retry: RetryPolicy | None = None,
    limits: ServiceLimits | None = None,
    process: bool = False,
    memory: Literal["none", "session", "task"] = "none",
) -> Callable[[Callable[P, R]], FunctionService[P, R]]: ...


def service(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    concurrency: int = 8,
    run_timeout_s: float = 600.0,
    retry: RetryPolicy | None = None,
    limits: ServiceLimits | None = None,
    process: bool = False,
    memory: Literal["none", "session", "task"] = "none",
) -> Any:
    """Make a function a service; the function stays callable as before.

    `@service` or `@service(name=..., description=..., concurrency=..., run_timeout_s=..., retry=..., limits=...,
    process=..., memory=...)`. `concurrency` is the number of steps that one instance works on at the same time,
    `run_timeout_s` the deadline of one attempt in seconds, `retry` is applied where the orchestrator does not handle
    failures itself; `limits` hold over all instances; with `process` it runs in worker processes, which can be killed;
    `memory` is what its steps share as `context.memory`: one per session, one per task, or none. Raises `SettingError`
    for a signature that no input can fill.
    """
    local_names = _defining_scope(function) if function is not None else None

    def decorate(decorated: Callable[..., Any]) -> FunctionService[..., Any]:
        return FunctionService(
            decorated,
            name=name,
            description=description,
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
            retry=retry,
            limits=limits,
            process=process,
            memory=memory,
            local_names=local_names if function is not None else _defining_scope(decorated),
        )

    return decorate if function is None else decorate(function)


def _defining_scope(function: Any) -> Mapping[str, Any] | None:
    """Local names of the function that contains `function`, for a decorator used in it; None at module level."""
    if "<locals>" not in getattr(function, "__qualname__", ""):
        return None
    return dict(sys._getframe(2).f_locals)  # noqa: SLF001 - as pydantic does for models that are local to a function


def _own_name(function: Any) -> str:
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise SettingError(f"{function!r} has no name", fix='name it: service(name="...")(function)')
    return name


def _summary(function: Any) -> str:
    """The first paragraph of the docstring, on one line."""
    is_object = not (inspect.isroutine(function) or inspect.isclass(function))
    text = inspect.getdoc(type(function) if is_object else function) or ""
    return "" if isinstance(function, functools.partial) else " ".join(text.split("\n\n", 1)[0].split())


def _style(function: Any) -> str:
    """How to call it: `coroutine`, `async generator`, `generator` or (plain) `function`."""
    target = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = type(target).__call__
    if inspect.iscoroutinefunction(target):
        return "coroutine"
    if inspect.isasyncgenfunction(target):
        return "async generator"
    return "generator" if inspect.isgeneratorfunction(target) else "function"


def _call_in_thread(call: Callable[[], Any], context: StepContext) -> Any:
    if context.canceled:
        raise asyncio.CancelledError
    value = call()
    return _stream_sync(value, context) if inspect.isgenerator(value) else value


def _stream_sync(values: Iterator[Any], context: StepContext) -> Any:
    """Stream what a generator yields; the list of it, or what the generator returned."""
    yielded: list[Any] = []
    try:
        while not context.canceled:
            value = next(values)
            context.stream(value)
            yielded.append(value)
    except StopIteration as end:
        return yielded if end.value is None else end.value
    finally:
        values.close()  # type: ignore[attr-defined]
    return yielded


async def _stream_async(values: AsyncIterator[Any], context: StepContext) -> list[Any]:
    """Stream what an async generator yields; the list of it."""
    yielded: list[Any] = []
    try:
        async for value in values:
            context.stream(value)
            yielded.append(value)
    finally:
        close = getattr(values, "aclose", None)
        if close is not None:
            await close()
    return yielded
