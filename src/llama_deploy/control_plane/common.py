"""What is recorded once for all control planes of a store: known services, pauses and limits of services, releases.

Whoever changes it says so. The others read it then, each at a moment of its own, and from time to time without a word,
because a word may be lost. With it go hints about tasks that were removed, so that nobody shows them from memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.errors import LlamaDeployError
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types import ServiceDefinition

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

log = get_logger("llama_deploy.leadership")

CHANGED = "changed"
REMOVED = "removed "
WORD_BYTES_MAX = 6_000
SOON_S = (0.01, 0.1)
READ_AGAIN_S = (20.0, 40.0)
"""What others may have changed is read again after so long, also where nobody has said anything."""


class Common:
    """What one engine has in common with others; nothing, where it has its store to itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = asyncio.Event()
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.reads = 0
        """How often it was read since the start."""
        engine.leadership.heard = self._heard  # from the first word on, also while the start reads what there is

    def start(self) -> None:
        """Act on what others say."""
        if self._engine.leadership.shared:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Hear nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- saying -----------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something was recorded that others know, too."""
        self._say(CHANGED)

    def removed(self, task_ids: Sequence[str]) -> None:
        """These tasks are not in the store any more."""
        for first in range(0, len(task_ids), 50):
            word = REMOVED + msgspec.json.encode(list(task_ids[first : first + 50])).decode()
            self._say(word if len(word.encode()) <= WORD_BYTES_MAX else REMOVED)

    def _say(self, word: str) -> None:
        if self._engine.leadership.shared and self._engine.ready:
            self._engine.store.announce(word)

    # --- hearing ----------------------------------------------------------------------------------------------------

    def _heard(self, word: str) -> None:
        if word in ("", CHANGED):
            self._wake.set()
        if word.startswith(REMOVED):
            self._forget(word.removeprefix(REMOVED))

    def _forget(self, encoded: str) -> None:
        cache = self._engine.cache
        try:
            named = msgspec.json.decode(encoded, type=list[str]) if encoded else list(cache.ended_tasks)
        except msgspec.DecodeError:
            return  # of another version
        self._engine.spawn(cache.drop([task_id for task_id in named if task_id in cache.ended_tasks]))

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(*READ_AGAIN_S)):  # noqa: S311 - jitter
                    await self._wake.wait()
            await asyncio.sleep(random.uniform(*SOON_S))  # noqa: S311 - jitter
            self._wake.clear()
            try:
                await self.read()
            except LlamaDeployError as error:
                log.warning("what control planes have in common cannot be read now", error=str(error))
            except Exception:  # the edge of this task: another version may have recorded what this one cannot read
                log.exception("what control planes have in common cannot be understood")

    async def read(self) -> None:
        """Know what is recorded now. One reads after the other, so that the latest word counts."""
        async with self._reading:
            await self._read()

    async def _read(self) -> None:
        engine = self._engine
        self.reads += 1
        found = {
            name: ServiceDefinition.model_validate_json(encoded)
            for name, encoded in (await engine.store.load_services()).items()
        }
        for name in engine.registry.agree(found):
            engine.admission.refresh(name)
            engine.memory.refresh(name)
        await engine.admission.reread()
        await engine.releases.restore()
