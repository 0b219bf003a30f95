"""Connections for clients of the published kind, which may be used from any event loop and are never closed.

What they ask in common is here as well; which routes there are is said by the classes that hold a line.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import UNSET

from llama_deploy.client import Client
from llama_deploy.client.outcomes import output_of, result_of
from llama_deploy.connections.problems import error_from_problem
from llama_deploy.errors import WaitTimeoutError
from llama_deploy.messages.stream_events import published_event
from llama_deploy.messages.submissions import definition, input_text
from llama_deploy.runtime.credentials import Credentials
from llama_deploy.types import TaskDefinition


class NotEndedInTimeError(WaitTimeoutError, TimeoutError):
    """What published programs catch as `TimeoutError` when a run has not ended in time; the task goes on."""


_ATTEMPT_MARKER = frozenset({"llama_deploy", "step_id", "attempt"})


class Lines(ABC):
    """Where a client asks from whatever loop it is used on."""

    @abstractmethod
    async def calls(self) -> Calls:
        """What the running loop asks with."""

    def below(self, path: str) -> Lines:
        """The lines to what is below a path there. By default nothing is."""
        del path
        return self


class OwnLine(Lines):
    """One client, on its own loop."""

    def __init__(self, client: Client) -> None:
        self._calls = Calls(client, client.settings.timeout_s)

    async def calls(self) -> Calls:
        return self._calls


class SharedLines(Lines):
    """For each loop one client per address, which all that ask there share: published ones are made again and again.

    It is closed when its loop ends.
    """

    def __init__(self, url: str | Sequence[str], *, timeout_s: float, credentials: Credentials | None = None) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._credentials = credentials

    def below(self, path: str) -> Lines:
        assert isinstance(self._url, str), "an API server has one address"
        return SharedLines(f"{self._url.rstrip('/')}{path}", timeout_s=self._timeout_s, credentials=self._credentials)

    async def calls(self) -> Calls:
        loop = asyncio.get_running_loop()
        mine = _open.get(loop)
        if mine is None:
            for ended in [one for one in _open if one.is_closed()]:
                del _open[ended]
            mine = _open[loop] = {}
        place = self._url if isinstance(self._url, str) else tuple(self._url), self._credentials
        found = mine.get(place)
        if found is None:
            client = Client(self._url, credentials=self._credentials)
            found = mine[place] = client, loop.create_task(_close_with_the_loop(client, mine))
        return Calls(found[0], self._timeout_s)


_Place = tuple[str | tuple[str, ...], Credentials | None]
_open: dict[asyncio.AbstractEventLoop, dict[_Place, tuple[Client, asyncio.Task[None]]]] = {}


async def _close_with_the_loop(client: Client, mine: dict[Any, Any]) -> None:
    """Wait to be canceled, as every task is when its loop ends."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        mine.clear()
        await client.close()


class Calls:
    """What published programs ask for, with one client of ours."""

    def __init__(self, client: Client, timeout_s: float) -> None:
        self.client = client
        self.timeout_s = timeout_s

    async def ask(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """One request to a route. Raises what the control plane refuses with."""
        return await self.client._ask(method, path, body, **params)  # noqa: SLF001 - its adapter to the published routes

    async def upload(self, path: str, form: tuple[str, bytes], *, params: dict[str, Any]) -> Any:
        """Send a form to a route. Raises what the server refuses with."""
        content_type, content = form

        async def pieces() -> AsyncIterator[bytes]:
            yield content

        headers = {"content-type": content_type, "content-length": str(len(content))}
        transport = self.client._transport  # noqa: SLF001 - nothing else of ours sends a form
        status, _, answer = await transport.exchange("POST", path, params=params, headers=headers, content=pieces())
        try:
            decoded = msgspec.json.decode(answer) if answer else None
        except msgspec.DecodeError:
            decoded = None
        if status >= HTTPStatus.BAD_REQUEST:
            raise error_from_problem(decoded, status=status, address=transport.address)
        return decoded

    async def run(self, service: str, session_id: str, arguments: dict[str, Any]) -> str:
        """Run a task of a session to its end; its result as text. Raises `TaskFailed`, `WaitTimeoutError`."""
        return await self.run_task(TaskDefinition(input=_input(arguments), agent_id=service, session_id=session_id))

    async def run_task(self, task: TaskDefinition) -> str:
        """The same for a task as it is defined."""
        body = definition(
            service=task.agent_id,
            input=task.input,
            task_id=task.task_id,
            session_id=task.session_id,
            wait_for_service=task.wait_for_service,
            idempotency_key=task.idempotency_key,
            metadata=task.metadata or None,
            options=task.options,
        )
        connection = self.client._connection  # noqa: SLF001 - one round trip, and the whole result
        try:
            ended = await connection.outcome(task.task_id, body, timeout_s=self.timeout_s)
        except WaitTimeoutError as error:
            raise NotEndedInTimeError(error.what, why=error.why, fix=error.fix, **error.details) from error
        result = result_of(ended)
        if result.status != "completed":
            output_of(ended, None, None)  # raises what it ended with
        return result.result

    async def submit(self, service: str, session_id: str, arguments: dict[str, Any]) -> str:
        """Submit a task of a session; its id, once it is recorded."""
        return await self.client.submit(
            service, session_id=session_id, input=_input(arguments), timeout_s=self.timeout_s
        )

    async def events(self, task_id: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a task as they happen, as published readers know them, until it ends."""
        async for event in self.client.stream(task_id):
            if isinstance(event.data, dict) and event.data.keys() == _ATTEMPT_MARKER:
                continue
            shown = published_event(event.data)
            yield shown if isinstance(shown, dict) else {"value": shown}


def _input(arguments: dict[str, Any]) -> str:
    """The input as published: always the JSON of the keyword arguments."""
    return input_text(UNSET, arguments) if arguments else "{}"


def serialized(event: Any) -> str:
    """An event of a workflow as the published clients send it."""
    from workflows.context.serializers import JsonSerializer

    return JsonSerializer().serialize(event)
