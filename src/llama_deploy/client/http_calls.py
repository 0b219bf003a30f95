"""What the parts of the client share: a request over HTTP, and its answer as a view or as the error that it tells."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from llama_deploy.connections.problems import error_from_problem, unexpected
from llama_deploy.connections.transport import Transport
from llama_deploy.errors import InvalidRequestError

View = TypeVar("View", bound=BaseModel)


class HttpCalls:
    """Requests to the HTTP API over a client's transport. Raises what the control plane refuses with."""

    _transport: Transport

    async def _ask(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        given = {name: value for name, value in params.items() if value is not None}
        status, answer = await self._transport.request(method, path, params=given, json=body)
        if status >= HTTPStatus.BAD_REQUEST:
            raise error_from_problem(answer, status=status, address=self._transport.address)
        return answer

    async def _get(self, model: type[View], path: str, **params: Any) -> View:
        return view_of(model, await self._ask("GET", path, **params))


def view_of(model: type[View], answer: Any) -> View:
    """An answer as the view that it is. Raises `ProtocolError` for anything else."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise unexpected(f"what is no {model.__name__} ({error.error_count()} problems)") from error


def segment(name: str) -> str:
    """A name as one segment of a path. Raises `InvalidRequestError` for an empty one."""
    if not name:
        raise InvalidRequestError("an empty id or name was given")
    return quote(name, safe="")
