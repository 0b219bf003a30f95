"""How errors become answers: problem+json with code, what, why, fix; never an unexplained 500."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llama_deploy.errors import HTTP_STATUS, Category, InvalidRequestError, LlamaDeployError
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.http")

RETRY_AFTER_S = {Category.TOO_MANY: "1", Category.UNAVAILABLE: "2"}


def install(app: FastAPI) -> None:
    """Answer every error of this app as a problem."""
    app.add_exception_handler(LlamaDeployError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def problem(error: LlamaDeployError) -> JSONResponse:
    """The answer for one of our errors."""
    headers = {}
    if error.category in RETRY_AFTER_S:
        headers["Retry-After"] = RETRY_AFTER_S[error.category]
    return JSONResponse(error.to_problem(), HTTP_STATUS[error.category], headers, media_type="application/problem+json")


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LlamaDeployError)
    return problem(error)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        {"field": ".".join(str(part) for part in item["loc"]), "message": item["msg"]} for item in error.errors()
    ]
    first = problems[0]
    return problem(
        InvalidRequestError(
            f"{first['field']}: {first['message']}",
            why="the request does not have the form that this route expects",
            fix="see the schema of this route at /openapi.json",
            problems=problems,
        )
    )


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    what = {404: f"there is no route {request.url.path}", 405: f"{request.method} is not possible here"}
    body: dict[str, Any] = InvalidRequestError(
        what.get(error.status_code, str(error.detail)), fix="the routes are listed at /openapi.json"
    ).to_problem()
    body["status"] = error.status_code
    return JSONResponse(body, error.status_code, error.headers, media_type="application/problem+json")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("request failed", path=request.url.path, exc_info=error)
    return problem(LlamaDeployError("the control plane failed on this request", why=type(error).__name__))
