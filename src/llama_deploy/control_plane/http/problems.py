"""How errors become answers: problem+json (RFC 9457) with code, what, why, fix; never an unexplained 500.

`answers` says which of them a route may give, for the OpenAPI document; `openapi.py` adds the schema that it refers to.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from llama_deploy.errors import HTTP_STATUS, Category, InvalidRequestError, LlamaDeployError, ShardLostError
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.http")

RETRY_AFTER_S = {Category.TOO_MANY: "1", Category.UNAVAILABLE: "2"}

MEDIA_TYPE = "application/problem+json"

JSON_TYPE = "application/json"


ELSEWHERE = b"llama-deploy-elsewhere"
"""The header of a refusal because another control plane leads the session: whoever passed the request on asks again."""


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it, and what to do about it."""

    type: str = Field(description="A URN that names the kind of error.")
    title: str
    status: int = Field(description="The HTTP status.")
    detail: str
    code: str = Field(description="The error's code; `llamactl explain CODE` says more.")
    what: str = Field(description="What happened, in one sentence.")
    why: str = Field(description="The cause, where it is known.")
    fix: str = Field(description="What to do about it.")
    details: dict[str, Any] = Field(description="Values for programs: names that exist, the limit that was met.")


_DESCRIPTIONS = {
    HTTPStatus.BAD_REQUEST: "The request is not valid. Nothing was changed.",
    HTTPStatus.UNAUTHORIZED: "A token is asked for, and none that is known was sent.",
    HTTPStatus.FORBIDDEN: "The token does not allow this, or a page of another site asks.",
    HTTPStatus.NOT_FOUND: "What the request names does not exist.",
    HTTPStatus.CONFLICT: "What exists does not allow this. Nothing was changed.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "A limit was exceeded; the problem names the setting.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too much work is unfinished; try again later.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A defect of the control plane.",
    HTTPStatus.SERVICE_UNAVAILABLE: "It is stopping, or its store cannot be used now; try again later.",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a route may answer with, in the form in which FastAPI takes them; 500 and 503 always."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    every = (*statuses, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
    return {int(status): {"description": _DESCRIPTIONS[HTTPStatus(status)], "content": content} for status in every}


class Refusal(HTTPException):
    """One of our errors on its way through code that lets only errors of HTTP pass."""

    def __init__(self, error: LlamaDeployError) -> None:
        super().__init__(HTTP_STATUS[error.category], error.what)
        self.error = error


def install(app: FastAPI) -> None:
    """Answer every error of this app as a problem."""
    app.add_exception_handler(LlamaDeployError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _broken_off)
    app.add_exception_handler(Exception, _unexpected)


def problem(error: LlamaDeployError) -> JSONResponse:
    """The answer for one of our errors."""
    headers = {ELSEWHERE.decode(): "1"} if isinstance(error, ShardLostError) else {}
    if error.category in RETRY_AFTER_S:
        after_s = error.details.get("retry_after_s")
        if isinstance(after_s, int | float):
            headers["Retry-After"] = str(math.ceil(after_s))
        else:
            headers["Retry-After"] = RETRY_AFTER_S[error.category]
    return JSONResponse(error.to_problem(), HTTP_STATUS[error.category], headers, media_type=MEDIA_TYPE)


def no_route(path: str) -> JSONResponse:
    """The answer where nothing answers."""
    body: dict[str, Any] = InvalidRequestError(
        f"there is no route {path[:200]}", fix="the routes are listed at /openapi.json"
    ).to_problem()
    body["status"] = HTTPStatus.NOT_FOUND.value
    return JSONResponse(body, HTTPStatus.NOT_FOUND, media_type=MEDIA_TYPE)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LlamaDeployError)
    return problem(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        {"field": ".".join(str(part) for part in item["loc"]), "message": item["msg"]} for item in error.errors()
    ]
    first = problems[0]
    why = "the request does not have the form that this route expects"
    fix = "see the schema of this route at /openapi.json"
    if isinstance(error.body, bytes):  # it was not even read as JSON
        why = f"the body's content type is {request.headers.get('content-type', 'not given')}"
        fix = f"send JSON, and say so: Content-Type: {JSON_TYPE}"
    return problem(InvalidRequestError(f"{first['field']}: {first['message']}", why=why, fix=fix, problems=problems))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refusal):
        return problem(error.error)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return no_route(request.url.path)
    what = {HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not possible here"}
    body: dict[str, Any] = InvalidRequestError(
        what.get(HTTPStatus(error.status_code), str(error.detail)), fix="the routes are listed at /openapi.json"
    ).to_problem()
    body["status"] = error.status_code
    return JSONResponse(body, error.status_code, error.headers, media_type=MEDIA_TYPE)


async def _broken_off(request: Request, _: Exception) -> JSONResponse:
    """Whoever asked is gone, in the middle of the body: nobody reads the answer."""
    log.info("a client broke its request off", path=request.url.path)
    return problem(InvalidRequestError("the request broke off"))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("request failed", path=request.url.path, exc_info=error)
    return problem(LlamaDeployError("the control plane failed on this request", why=type(error).__name__))
