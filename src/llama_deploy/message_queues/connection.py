"""A connection to a broker that is kept up: made, watched, let go, and made again after pauses drawn at random."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

from llama_deploy.errors import CarrierRefusedError
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.runtime import PUT_OFF_MAX, Clock, put_off_s
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.carrier")

Value = TypeVar("Value")

SHORT_S = 1.0
"""A connection that broke sooner than this counts as one that failed: the next one waits as after a failure."""


class KeptConnection(ABC):
    """One long-lived connection. Whoever uses it says `_fail` when something went wrong on it, with its number."""

    kind: ClassVar[str]

    def __init__(self, settings: CarrierSettings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._connected = asyncio.Event()
        self._generation = 0
        """The number of the connection, so that the failure of an earlier one breaks nothing."""
        self._changed_at: float | None = None
        self._first: asyncio.Future[None] | None = None
        self._broken = asyncio.Event()
        self._losses = 0
        self._error = ""
        self._stopped = False
        self._given_up: set[asyncio.Task[Any]] = set()
        """Calls of the driver that nobody waits for any more, and that have not ended yet."""

    @abstractmethod
    async def connect(self) -> None:
        """Connect. Raises `CarrierRefusedError` where trying again is of no use."""

    @abstractmethod
    async def disconnect(self) -> None:
        """Let the connection go, in whatever state it is."""

    @abstractmethod
    async def _prepare_again(self) -> bool:
        """Have at the broker what there was before; whether it had lost some of it."""

    @abstractmethod
    def _forget_fetched(self) -> None:
        """What was fetched over a connection that is gone comes again by itself."""

    @abstractmethod
    def _returned(self, *, lost: bool) -> None:
        """It is connected again."""

    async def _keep(self) -> None:
        """Be connected, again and again; pauses between attempts are drawn at random up to a doubling limit."""
        failures = 0
        while not self._stopped:
            try:
                await self._within(self.settings.connect_timeout_s, self.connect())
                lost = await self._prepare_again()
            except Exception as error:  # noqa: BLE001 - the edge of this task: whatever a driver raises is noted
                self._note(error)
                await self._let_go()
                if failures == 0:
                    log.warning("the carrier cannot be reached, trying again", carrier=self.kind, error=self._error)
                failures += 1
                self._tell_first(error)
                await self._pause(failures)
                continue
            again = self._generation > 0
            self._generation += 1
            self._changed_at = self._clock.now()
            self._broken.clear()
            self._connected.set()
            log.info("carrier connected", carrier=self.kind, at=self.settings.location, lost=lost)
            if again:
                self._losses += lost
                self._returned(lost=lost)
            self._tell_first(None)
            began = time.monotonic()
            await self._broken.wait()
            await self._let_go()
            if time.monotonic() - began >= SHORT_S:
                failures = 0
            else:  # it lets us in, and then what we ask fails: as good as not connected
                failures += 1
                await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        """Before the next attempt: the longer, the more have failed."""
        most = min(self.settings.reconnect_s_max, self.settings.reconnect_s * 2 ** min(failures, 16))
        await asyncio.sleep(random.uniform(0.0, most))  # noqa: S311 - jitter, not a secret

    def _tell_first(self, error: Exception | None) -> None:
        """`start` returns, or raises where the broker does not let this process in."""
        if self._first is not None and not self._first.done():
            if isinstance(error, CarrierRefusedError):
                self._first.set_exception(error)
            else:
                self._first.set_result(None)

    def _fail(self, error: BaseException, generation: int) -> None:
        """Something went wrong on a connection: make another one, unless that has been done."""
        if generation == self._generation and self._connected.is_set():
            self._note(error)
            log.warning("carrier disconnected", carrier=self.kind, error=self._error)
            self._connected.clear()
            self._changed_at = self._clock.now()
            self._broken.set()

    def _note(self, error: BaseException) -> None:
        words = self.settings.hide(str(error))
        self._error = f"{type(error).__name__}: {words}" if words else type(error).__name__

    async def _within(self, seconds: float, call: Coroutine[Any, Any, Value]) -> Value:
        """What a call of the driver returns; `TimeoutError` after so long.

        It is cancelled then and not waited for: drivers answer a cancellation with a last word to the broker, and wait
        for ever where the connection takes none. A process that stood still meanwhile waits again: the answer may be
        there, unread. A call that the driver itself cancels, as some do when they lose a connection, raises
        `ConnectionAbortedError`: what waits for it here is not cancelled, and has to go on.
        """
        task = asyncio.ensure_future(call)
        try:
            left_s = seconds
            for _ in range(1 + PUT_OFF_MAX):
                due_at = time.monotonic() + left_s
                await asyncio.wait((task,), timeout=left_s)
                if task.cancelled():
                    raise ConnectionAbortedError("the driver has cancelled the call")
                if task.done():
                    return task.result()
                left_s = put_off_s(time.monotonic() - due_at, seconds)
                if not left_s:
                    break
            raise TimeoutError(f"no answer within {seconds:g} s")
        finally:
            if not task.done():
                task.cancel()
                self._given_up.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._given_up.discard(task)
        if not task.cancelled():
            task.exception()  # of a connection that is given up

    async def _let_go(self) -> None:
        self._forget_fetched()
        try:
            await self._within(self.settings.connect_timeout_s, self.disconnect())
        except Exception as error:  # noqa: BLE001 - it is given up whatever it says
            log.info("a broken connection did not close", carrier=self.kind, error=type(error).__name__)
