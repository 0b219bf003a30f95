"""How a command talks to the control plane: one client for as long as the command runs, and input from a person.

Errors pass through as they are; the root of the command line renders them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from llama_deploy.cli.credentials import credentials_of
from llama_deploy.cli.settings import Settings
from llama_deploy.client import Client
from llama_deploy.connections.http_requests import REQUEST_TIMEOUT_S
from llama_deploy.errors import InvalidRequestError

Value = TypeVar("Value")


def with_client(
    settings: Settings, work: Callable[[Client], Awaitable[Value]], *, timeout_s: float = REQUEST_TIMEOUT_S
) -> Value:
    """Run `work` with a client of the server that the settings name. Ctrl-C cancels it and raises.

    `timeout_s` is how long a request may go without an answer where the settings say nothing.
    """

    async def main() -> Value:
        async with Client(
            settings.server,
            wait_when_full=False,
            credentials=credentials_of(settings),
            request_timeout_s=settings.timeout_s or timeout_s,
        ) as client:
            return await work(client)

    return asyncio.run(main())


def read_stdin() -> str:
    """All of standard input as text. Raises `InvalidRequestError` when it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            "standard input is not UTF-8 text", why=str(error), fix="encode binary data as text (base64)"
        ) from error


def parse_json(text: str, *, option: str) -> Any:
    """The value of a JSON text. Raises `InvalidRequestError` that says where it is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequestError(
            f"the value of {option} is not JSON",
            why=f"line {error.lineno}, column {error.colno}: {error.msg}\n{_pointed(error)}",
            fix=f"""quote it for the shell: {option} '{{"text": "hello"}}'\nuse -a KEY VALUE for single arguments""",
        ) from error


def json_or_text(text: str) -> Any:
    """The value of a JSON text, or the text itself where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _pointed(error: json.JSONDecodeError) -> str:
    line = error.doc.splitlines()[error.lineno - 1] if error.doc else ""
    return f"{line}\n{' ' * (error.colno - 1)}^"
