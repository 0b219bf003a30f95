"""What a service is to the runner: a definition, and one method that works on one attempt of one step.

Adapters (functions, workflows, people, tools) implement `Service`; the runner owns everything else: connections,
credits, deadlines, cancellation, answers. An adapter raises when the step failed and never sends anything itself.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from llama_deploy._lazy import published_names
from llama_deploy.errors import InvalidRequestError, LimitExceededError, NonRetryableError, StepCanceledError
from llama_deploy.messages.frames import HEARTBEAT_BYTES_MAX
from llama_deploy.runtime.files import Source
from llama_deploy.services.asking import Asking
from llama_deploy.services.desk import Desk, take_page
from llama_deploy.services.encoding import encode
from llama_deploy.types import ServiceDefinition, TaskOptions, TaskResult
from llama_deploy.types.artifacts import Artifact

if TYPE_CHECKING:
    from llama_deploy.services.blocking import Blocking
    from llama_deploy.services.contents import Contents
    from llama_deploy.services.memory import StepMemory
else:
    __getattr__, __dir__ = published_names(__name__)


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """What `Service.run` returns instead of a result when the step waits for a person.

    With `resume="answer"` the person's input becomes the step's answer. With `resume="redeliver"` the step runs
    again, on any instance, with `snapshot` and every input so far.
    """

    prompt: dict[str, Any]
    """Shown to the person: at least `prompt` (text); `schema` (JSON schema of the answer) where one is known."""
    resume: str = "answer"
    snapshot: bytes | None = None
    consumed: int = 0
    """How many inputs of this step the service has used up; parking is refused when there are newer ones."""


class StepContext:
    """One attempt of one step, as the service's code sees it. Its methods may be called from any thread.

    `step_id` is the same for all attempts: use it to make side effects idempotent. What has to be awaited here has a
    twin under `blocking`, for code that runs in a thread.
    """

    def __init__(
        self,
        *,
        step_id: str,
        attempt: int,
        task_id: str,
        session_id: str,
        service: str,
        action: str,
        data: dict[str, Any],
        emit: Callable[[bytes], None],
        ask: Callable[[dict[str, Any]], None],
        inputs: asyncio.Queue[Any] | None = None,
        inputs_given: int = 0,
        snapshot: bytes | None = None,
        run_timeout_s: float = 0.0,
        desk: Desk | None = None,
        contents: Contents | None = None,
        memory: StepMemory | None = None,
    ) -> None:
        self.step_id = step_id
        self.attempt = attempt
        """1 for the first attempt."""
        self.task_id = task_id
        self.session_id = session_id
        self.service = service
        self.action = action
        """Value of `ActionTypes`."""
        self.data = data
        """The message's data; for a new task the fields of `NewTask`."""
        self.snapshot = snapshot
        """What an earlier attempt parked with (`Parked.snapshot`)."""
        self.run_timeout_s = run_timeout_s
        """The run deadline of this attempt in seconds; time spent waiting for a person does not count."""
        self._inputs = inputs
        self.inputs_given = inputs_given
        """How many inputs stood in `inputs` when this attempt began."""
        self.answers_taken = 0
        """How many answers this attempt has got from `ask`."""
        self.canceled = False
        """True once the attempt should stop: its coroutine is cancelled, a thread has to look here."""
        self._woken: threading.Event | None = None
        self._loop = asyncio._get_running_loop()  # noqa: SLF001 - None where there is none, as in a test
        self._waited_for: dict[Future[Any], None] = {}
        """What threads wait for that is awaited on the loop."""
        self._emit = emit
        self._ask = ask
        self._asking: Asking | None = None
        self._desk = desk
        self._once: dict[str, Future[Any]] | None = None
        self._calls = 0
        self.nested_calls: dict[str, int] = {}  # for `nested`: how often which request was made
        self.calls_need_keys = False
        """Whether the order of calls may differ between attempts by the nature of the service, as in a workflow."""
        self._contents = contents
        self._memory = memory

    @property
    def inputs(self) -> asyncio.Queue[Any]:
        """Inputs from people for this step, oldest first, as decoded JSON values; also those of earlier attempts."""
        if self._inputs is None:
            self._inputs = asyncio.Queue()
        return self._inputs

    @property
    def input(self) -> str:
        """The task's input text; of a message that carries no task, its data as JSON text (empty for no data)."""
        task = self.data.get("task")
        if isinstance(task, dict) and "input" in task:
            return str(task["input"])
        return encode(self.data).decode() if self.data else ""

    @property
    def arguments(self) -> Any:
        """What the step was given: the keyword arguments where its input is an object, else its text."""
        if not isinstance(self.data.get("task"), dict):
            return self.data
        text = self.input
        if text[:1] == "{":
            try:
                return msgspec.json.decode(text)
            except msgspec.DecodeError:
                return text
        return text

    def stream(self, event: Any) -> None:
        """Append an event to the task's stream; any value with a JSON form.

        It reaches subscribers once it is recorded. After a crash the next attempt starts its events anew, after a
        marker. Raises `ResultNotSerialisableError` for a value without a JSON form; nothing is streamed then.
        """
        self._emit(encode_value(event))

    def request_input(self, prompt: dict[str, Any]) -> None:
        """Ask a person without waiting here: the task is `input_required`, and the answer arrives in `inputs`.

        `prompt` as in `Parked.prompt`.
        """
        self._ask(prompt)

    async def save(self, source: Source, *, name: str | None = None, media_type: str | None = None) -> Artifact:
        """Store a file or a large binary result once, under its hash; the artifact that is returned stands for it.

        `source` is bytes, the path of a file, a file that is open for reading bytes, or an iterator of bytes, async or
        not; it is never in memory as a whole unless it is already. Return the artifact, stream it, or put it anywhere
        into a result: the content is kept for as long as the task is. Storing the same content again costs nothing.
        Raises `LimitExceededError` above `artifact_bytes_max`, and what reading the source raises.
        """
        return await self.contents.save(source, name=name, media_type=media_type)

    def save_from_thread(self, source: Source, *, name: str | None = None, media_type: str | None = None) -> Artifact:
        """`save` for code that runs in a thread; it waits for the end there.

        Raises `StepCanceledError` as soon as the attempt should stop.
        """
        saved = self.start_waiting(self.contents.save(source, name=name, media_type=media_type))
        try:
            artifact: Artifact = saved.result()
        except CancelledError as error:
            raise StepCanceledError("the attempt should stop", why="it was canceled while it saved a file") from error
        finally:
            self.end_waiting(saved)
        return artifact

    @property
    def contents(self) -> Contents:
        """For this package: where contents are stored and read."""
        if self._contents is None:
            raise InvalidRequestError("this step has no connection that a content could go over")
        return self._contents

    async def ask(self, prompt: str, **details: Any) -> Any:
        """Ask a person and wait for the answer while this attempt keeps running.

        The task is `input_required` meanwhile. The answer is recorded before it is given here; an attempt after a
        crash is given the recorded answers in the same order without anyone being asked again.
        """
        self._asking = self._asking or Asking()
        answer = await self._asking.answer(self.inputs, partial(self.request_input, {"prompt": prompt, **details}))
        self.answers_taken += 1
        return answer

    # --- stopping ---------------------------------------------------------------------------------------------------

    def raise_if_canceled(self) -> None:
        """Raise `StepCanceledError` once the attempt should stop; for loops of code in a thread."""
        if self.canceled:
            raise StepCanceledError("the attempt should stop", why="it was canceled, or a deadline is over")

    async def sleep(self, seconds: float) -> None:
        """Let time pass. In a thread, `blocking.sleep` wakes when the attempt should stop; `time.sleep` does not."""
        await asyncio.sleep(seconds)

    def mark_canceled(self) -> None:
        """For this package: the attempt should stop; who sleeps in a thread wakes."""
        self.canceled = True
        if self._woken is not None:
            self._woken.set()
        for waited_for in tuple(self._waited_for):
            waited_for.cancel()

    def start_waiting(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """For this package: have something awaited on the loop, for a thread; it is cancelled with the attempt."""
        assert self._loop is not None, "a step runs on a loop"
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._waited_for[future] = None
        if self.canceled:  # it may have been before the future was noted
            future.cancel()
        return future

    def end_waiting(self, future: Future[Any]) -> None:
        """For this package: nobody waits for it any more."""
        self._waited_for.pop(future, None)

    def wait_canceled(self, seconds: float) -> bool:
        """For this package: sleep in a thread; true when the attempt should stop."""
        if self._woken is None:
            self._woken = threading.Event()
        return self.canceled or self._woken.wait(seconds)

    # --- signs of life ----------------------------------------------------------------------------------------------

    def heartbeat(self, details: Any = None) -> None:
        """Say that the code lives; costs next to nothing. `details` tell how far it is: any small value with JSON form.

        Where the task has a `heartbeat_timeout_s`, an attempt that has not called this for so long fails, and is tried
        again. The last details are shown with the task, and given to the next attempt as `last_heartbeat`; they are
        told now and then and not recorded each time. Raises `LimitExceededError` above 16 KiB.
        """
        encoded = None if details is None else encode_value(details)
        if encoded is not None and len(encoded) > HEARTBEAT_BYTES_MAX:
            raise LimitExceededError(
                f"the details of a heartbeat have {len(encoded)} bytes",
                why=f"HEARTBEAT_BYTES_MAX is {HEARTBEAT_BYTES_MAX}",
                fix="say how far it is, and keep what was done with once()",
                setting="HEARTBEAT_BYTES_MAX",
                limit=HEARTBEAT_BYTES_MAX,
            )
        self.desk.heartbeat(encoded)

    @property
    def last_heartbeat(self) -> Any:
        """The details of the last heartbeat of an earlier attempt that was told; `None` where there is none."""
        encoded = self.desk.last_heartbeat
        return None if encoded is None else msgspec.json.decode(encoded)

    # --- what is recorded ------------------------------------------------------------------------------------------

    async def once(self, key: str, function: Callable[[], Awaitable[Any] | Any]) -> Any:
        """Call `function` and have its value recorded; in every later attempt of the step, return that value at once.

        The value is recorded before this returns; it needs a JSON form, and is returned as that says it in the first
        attempt, too (a model comes back as a dict). `function` may be async; one that blocks belongs into a thread.
        Two calls under one key at the same time call one function. When it raises, nothing is recorded.

        The *effect* of `function` may happen again all the same: when the process dies after it and before the value
        is recorded. Where that matters, give whoever carries it out `step_id` and `key` as its idempotency key.
        Raises `LimitExceededError` for more than may be recorded, and `StepCanceledError` in an attempt that is not
        wanted any more.
        """
        first, outcome = self.begin_once(key)
        while not first:
            try:
                return await asyncio.shield(asyncio.wrap_future(outcome))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not outcome.cancelled() or task is None or task.cancelling():
                    raise
            first, outcome = self.begin_once(key)  # who was to call the function was cancelled, and nobody else
        try:
            value = function()
            if inspect.isawaitable(value):
                value = await value
            recorded = await asyncio.wrap_future(self.desk.remember(key, encode_value(value)))
        except BaseException as error:
            self.end_once(key, outcome, error)
            raise
        return self.end_once(key, outcome, recorded)

    def begin_once(self, key: str) -> tuple[bool, Future[Any]]:
        """Whether the caller is the one to call the function for this key, and where its value will be."""
        outcome: Future[Any] = Future()
        recorded = self.desk.remembered(key)
        if recorded is not None:
            outcome.set_result(msgspec.json.decode(recorded))
            return False, outcome
        if self._once is None:
            self._once = {}
        known = self._once.setdefault(key, outcome)
        return known is outcome, known

    def end_once(self, key: str, outcome: Future[Any], recorded: bytes | BaseException) -> Any:
        """What `function` came to: its recorded value, or the error, after which the key is free again."""
        if self._once is not None:
            self._once.pop(key, None)
        if not isinstance(recorded, BaseException):
            value = msgspec.json.decode(recorded)
            outcome.set_result(value)
            return value
        if isinstance(recorded, asyncio.CancelledError):
            outcome.cancel()
        else:
            outcome.set_exception(recorded)
        return None

    async def ledger(self, name: str = "transcript", *, first: int = 0) -> list[Any]:
        """The items from position `first` on of a list that an orchestrator above this step keeps, as it is now.

        Of the nearest one that has a list of this name: for a participant of a group chat, `"transcript"`. Items never
        change. Raises `LedgerNotFoundError`, and `StepCanceledError` in an attempt that is not wanted any more.
        """
        items: list[Any] = []
        position: int | None = first
        while position is not None:
            page = await asyncio.wrap_future(self.desk.read_ledger(name, position))
            position = take_page(items, page)
        return items

    # --- memory -----------------------------------------------------------------------------------------------------

    @property
    def memory(self) -> dict[str, Any]:
        """What the service remembers of the session, or of the task: a JSON object to read and to change in place.

        It is recorded with the step's answer, in the same commit. An attempt that fails leaves nothing in it, and the
        next one is handed what the first one was. Steps that share a memory run one after the other. Raises
        `NonRetryableError` in a service that was not made with `memory="session"` or `memory="task"`.
        """
        if self._memory is None:
            raise NonRetryableError(
                f"{self.service} keeps no memory", fix='make it with memory="session", or memory="task"'
            )
        return self._memory.value

    @property
    def kept_memory(self) -> StepMemory | None:
        """For this package: the memory with where it came from; `None` for a service that keeps none."""
        return self._memory

    # --- calling ----------------------------------------------------------------------------------------------------

    async def call(
        self,
        service: str,
        /,
        *,
        input: Any = msgspec.UNSET,
        key: str | None = None,
        options: TaskOptions | Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        wait_for_service: bool = False,
        **arguments: Any,
    ) -> Any:
        """Call another service and return what it returned; it is a task of its own, which survives this attempt.

        Arguments as for `Client.run`. A later attempt of this step finds what it called before by the number of the
        call, and waits for that instead of calling again; where the order of calls may differ between attempts, give
        each a `key`. Several calls may wait at the same time. Meanwhile the step takes no place of its service, and
        its run deadline stands still.

        Raises `TaskFailed` when the called task failed or was canceled, `WaitTimeoutError` after `timeout_s` seconds
        (the called task goes on until this one ends), `CallConflictError` when an earlier attempt asked for something
        else under this number or key, and what submitting a task raises (`ServiceUnknownError`). When the task of
        this step has ended, what it called and has not ended is canceled.
        """
        from llama_deploy.services.calls import call_timeout, output_of

        name, body = self.prepare_call(service, input, arguments, key, options, wait_for_service=wait_for_service)
        future = self.desk.call(name, body)
        try:
            async with asyncio.timeout(timeout_s):
                returned = await asyncio.wrap_future(future)
        except BaseException as error:
            if future.cancelled() or not future.done():  # given up; else it has ended by itself
                self.desk.end_call(name)
            if timeout_s is not None and type(error) is TimeoutError:
                raise call_timeout(service, timeout_s) from error
            raise
        return output_of(returned, service)

    def prepare_call(
        self,
        service: str,
        input: Any,
        arguments: Mapping[str, Any],
        key: str | None,
        options: TaskOptions | Mapping[str, Any] | None,
        *,
        wait_for_service: bool,
    ) -> tuple[str, bytes]:
        """For this package: the name of a call within the step, and the task that it is."""
        from llama_deploy.services.calls import call_body, check_key

        if key is not None:
            check_key(key)
        elif self.calls_need_keys:
            raise NonRetryableError(
                "a call from a workflow needs a key", fix='give each call a key of its own: call("other", key="…")'
            )
        body = call_body(service, input, arguments, options=options, wait_for_service=wait_for_service)
        if key is None:
            self._calls += 1
            key = f"#{self._calls}"
        return key, body

    @property
    def desk(self) -> Desk:
        """For this package: where wishes to the control plane are taken care of."""
        if self._desk is None:
            raise NonRetryableError("this context belongs to no running step", fix="use it in the code of a service")
        return self._desk

    @property
    def blocking(self) -> Blocking:
        """The same for code that runs in a thread (a plain `def`): each waits where it is called."""
        from llama_deploy.services.blocking import Blocking

        return Blocking(self)


_current: ContextVar[StepContext | None] = ContextVar("llama_deploy_step", default=None)
enter_step = _current.set
"""For this package: the code that runs from here on, and what it starts, works on this attempt."""


def current_step() -> StepContext:
    """The context of the attempt that the calling code works on, also where none was handed to it (a workflow's step).

    Known in the service's own coroutine or thread, and in tasks started from there. Raises `NonRetryableError`
    elsewhere.
    """
    context = _current.get()
    if context is None:
        raise NonRetryableError("no step runs here", fix="call current_step() in the code of a service")
    return context


def running_step() -> StepContext | None:
    """For this package: as `current_step`, and `None` outside of any step."""
    return _current.get()


class Service(ABC):
    """A named consumer of steps. One object serves many steps at once, so `run` keeps its state in locals."""

    definition: ServiceDefinition
    left_behind_changed: Callable[[], None] = staticmethod(lambda: None)
    """Set by the runner, called from any thread: `left_behind` is another number."""

    can_kill = False
    """Whether code that does not stop is killed and not left behind."""

    @property
    def left_behind(self) -> int:
        """How much code runs on that was asked to stop, did not, and that nobody waits for: threads."""
        return 0

    @abstractmethod
    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Work on one attempt of one step.

        Returns the result (its `task_id`, `step_id`, `service` and `attempt` are filled in by the engine), or
        `Parked`. Raises on failure: `NonRetryableError` and `ArgumentsError` are final, everything else is retried
        as the policy says. May run again for the same step after a crash.
        """

    async def start(self) -> None:
        """Called once before the first step, on the loop that `run` will be called on."""

    async def stop(self) -> None:
        """Called once after the last step."""


def encode_value(value: Any) -> bytes:
    """JSON of a value that user code produced: JSON types, pydantic models, dataclasses, msgspec structs, datetimes.

    Raises `ResultNotSerialisableError` that names the type, so that nothing half-serialised is ever recorded.
    """
    return encode(value)
