"""A thread with an event loop of its own, for programs that have none: calls go in, results come out.

It knows nothing of the client. The thread is a daemon and begins with the first call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from llama_deploy.errors import ConnectionLostError

T = TypeVar("T")


class Portal:
    """Runs coroutines on its own loop for any thread that calls, also one that runs a loop itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()  # a generator may be collected, and closed, while its thread is in here
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine to its end and return its result; an interrupt of the caller cancels it.

        Raises what the coroutine raises, and `ConnectionLostError` after `close`.
        """
        try:
            with self._lock:  # else it might be closed in between, and the coroutine never be run
                future = asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
        except ConnectionLostError:
            coroutine.close()
            raise
        try:
            return future.result()
        except CancelledError as error:
            if not self._closed:
                raise
            raise ConnectionLostError("the client was closed while it waited") from error
        except BaseException:
            future.cancel()
            raise

    def iterate(self, make: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        """The items of an async iterator, each fetched when it is asked for."""
        iterator = make()
        try:
            while True:
                try:
                    yield self.call(_next(iterator))
                except StopAsyncIteration:
                    return
        finally:
            self._finish(iterator)

    def _finish(self, iterator: AsyncIterator[T]) -> None:
        """Close the iterator without waiting for it: this may run wherever a generator is collected."""
        close = getattr(iterator, "aclose", None)
        with self._lock:
            if close is not None and self._loop is not None:
                asyncio.run_coroutine_threadsafe(close(), self._loop)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Stop the loop; what still runs on it is cancelled. The thread ends soon after. May be repeated."""
        with self._lock:
            self._closed = True
            if self._loop is not None:
                loop, self._loop = self._loop, None
                loop.call_soon_threadsafe(loop.stop)

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise ConnectionLostError("this client is closed", fix="make a new one, or keep this one open longer")
            if self._loop is None:
                self._loop = _new_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name=self._name, daemon=True)
                self._thread.start()
            return self._loop


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _next(iterator: AsyncIterator[T]) -> T:
    return await anext(iterator)
