"""The application of a `ControlPlaneServer`, for programs that add routes to it or have another server run it.

It is an application of FastAPI whose own routes come first; everything else is answered by the control plane.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI

App = Callable[[Any, Any, Any], Awaitable[None]]


class Application(FastAPI):
    """Routes of a program, and behind them the control plane.

    `started` gives the control plane's own application, once the control plane runs: it starts with the first request,
    or with the lifespan of a server that has one.
    """

    def __init__(self, started: Callable[[], Awaitable[App]]) -> None:
        super().__init__(
            title="llama_deploy control plane", openapi_url=None, docs_url=None, redoc_url=None, lifespan=self._lifespan
        )
        self._started = started
        self.inner: App | None = None
        """The control plane's own application, where the control plane itself listens."""
        self.router.redirect_slashes = False
        self.router.default = self._behind

    async def _behind(self, scope: Any, receive: Any, send: Any) -> None:
        inner = self.inner or await self._started()
        await inner(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        await self._started()
        yield
