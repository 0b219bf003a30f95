"""Whose question to a person an answer is for, where the code of one attempt asks several at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Asking:
    """Hands the answers of one attempt to those who have asked, in the order of asking."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def answer(self, inputs: asyncio.Queue[Any], request: Callable[[], None]) -> Any:
        """The next answer that is nobody else's; `request` asks for one where none is there yet."""
        if inputs.qsize() <= self._waiting:  # those that are there are for who has asked before
            request()
        self._waiting += 1
        try:
            async with self._turn:
                return await inputs.get()
        finally:
            self._waiting -= 1
