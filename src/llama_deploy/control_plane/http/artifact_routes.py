"""Contents over HTTP: sent in a body of any size, fetched whole or in ranges, never in memory as a whole.

The control plane keeps bytes under their hash and nothing about them: name and media type belong to the artifact that
stands for them, so whoever fetches a content says what it is to be called. It is always sent as something to save.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from email.message import Message
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from llama_deploy.control_plane.contents import Contents, check_hash, not_there
from llama_deploy.control_plane.http.problems import answers, problem
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import ArtifactCorruptError, InvalidRequestError, LimitExceededError, LlamaDeployError
from llama_deploy.runtime.files import PART_BYTES, prepare
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types.artifacts import MEDIA_TYPE, Artifact, media_type_of

log = get_logger("llama_deploy.http")
router = APIRouter(prefix="/v1", tags=["artifacts"])

PIECE_BYTES = 4 * PART_BYTES
"""What is read from the store at once while a content is sent."""

Hash = Annotated[str, Path(description="SHA-256 of the content, 64 small hex digits.")]
Name = Annotated[str | None, Query(max_length=255, description="What a file of it is called.")]
MediaType = Annotated[str, Query(max_length=200, description="What it is.")]

BODY: dict[str, Any] = {
    "requestBody": {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}, "required": False}
}
CONTENT: dict[str, Any] = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+(; ?charset=[A-Za-z0-9-]+)?")


def contents_of(request: Request) -> Contents:
    """The contents of the control plane behind this app."""
    plane: ControlPlane = request.app.state.plane
    return plane.engine.contents


@router.post("/artifacts", status_code=201, responses=answers(400, 413), openapi_extra=BODY)
async def post_artifact(request: Request, name: Name = None) -> Artifact:
    """Store the body; the answer is the artifact that stands for it. Repeating it stores nothing more."""
    _check_origin(request)
    return await _spooled(request, None, name)


@router.put(
    "/artifacts/{hash}",
    status_code=201,
    responses=answers(400, 404, 413) | {200: {"description": "It is there already.", "model": Artifact}},
    openapi_extra=BODY,
)
async def put_artifact(
    request: Request,
    response: Response,
    hash: Hash,  # noqa: A002 - the name in the address
    name: Name = None,
    offer: Annotated[
        int | None, Query(ge=0, le=2**53, description="Send no body, only its size: 200 if it is there, else 404.")
    ] = None,
) -> Artifact:
    """Store the body under its hash, which is checked. Nothing can be used before all of it is there."""
    contents = contents_of(request)
    _check_origin(request)
    check_hash(hash)
    if offer is not None:
        async with contents.upload(hash, offer) as upload:
            if upload is not None:
                raise not_there(hash)
        response.status_code = HTTPStatus.OK
        return _artifact(request, hash, offer, name)
    declared = request.headers.get("content-length", "")
    if not declared.isdigit():
        return await _spooled(request, hash, name)
    size = int(declared)
    async with contents.upload(hash, size) as upload:
        if upload is None:
            response.status_code = HTTPStatus.OK
            async for _ in request.stream():  # whoever sends would take an early answer for a broken connection
                pass
        else:
            position = 0
            async for part in _parts(request, size):
                await upload.put(position, part)
                position += 1
            await upload.finish()
    return _artifact(request, hash, size, name)


def _check_origin(request: Request) -> None:
    """Turn away pages of other sites: a body that is no JSON is what a browser lets any page send anywhere."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise InvalidRequestError("a page of another site sends this", why="its Origin is not this host")


async def _spooled(request: Request, hash_: str | None, name: str | None) -> Artifact:
    """Store a body whose hash or size is not known before it is read."""
    contents = contents_of(request)
    content = await prepare(_limited(request, contents.engine.settings.artifact_bytes_max))
    try:
        if hash_ not in (None, content.hash):
            raise ArtifactCorruptError(f"the body is not the content {hash_}", why=f"its SHA-256 is {content.hash}")
        async with contents.upload(content.hash, content.size_bytes) as upload:
            if upload is not None:
                for position in range(content.parts):
                    await upload.put(position, await content.part(position))
                await upload.finish()
        return _artifact(request, content.hash, content.size_bytes, name)
    finally:
        content.close()


async def _limited(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise LimitExceededError(
                f"the content has more than {bytes_max} bytes",
                why=f"artifact_bytes_max is {bytes_max}",
                setting="artifact_bytes_max",
                limit=bytes_max,
            )
        yield chunk


async def _parts(request: Request, size: int) -> AsyncIterator[bytes]:
    """The body in parts of the stored size; the last one may be shorter."""
    buffer = bytearray()
    received = 0
    async for chunk in request.stream():
        buffer += chunk
        received += len(chunk)
        if received > size:
            raise InvalidRequestError("the body is longer than its Content-Length")
        while len(buffer) >= PART_BYTES:
            yield bytes(buffer[:PART_BYTES])
            del buffer[:PART_BYTES]
    if buffer:
        yield bytes(buffer)


def _artifact(request: Request, hash_: str, size: int, name: str | None) -> Artifact:
    media_type = request.headers.get("content-type", "")
    if media_type in ("", MEDIA_TYPE) or not _MEDIA_TYPE.fullmatch(media_type):
        media_type = media_type_of(name)
    return Artifact(hash=hash_, size_bytes=size, media_type=media_type, name=name)


@router.head("/artifacts/{hash}", include_in_schema=False)
@router.get(
    "/artifacts/{hash}",
    response_class=StreamingResponse,
    responses=answers(400, 404)
    | {
        200: {"description": "The content.", "content": CONTENT},
        206: {"description": "The range that was asked for.", "content": CONTENT},
        304: {"description": "It is what the client has: `If-None-Match`.", "content": {}},
        416: {"description": "The content has no such range.", "content": answers(400)[400]["content"]},
    },
)
async def get_artifact(
    request: Request,
    hash: Hash,  # noqa: A002 - the name in the address
    *,
    name: Name = None,
    media_type: MediaType = MEDIA_TYPE,
    range: Annotated[str | None, Header()] = None,  # noqa: A002 - the header
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A content, whole or one range of it. It never changes, so it may be kept for ever."""
    contents = contents_of(request)
    _, size = await contents.read(hash, 0, 0)
    tag = f'"{hash}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": disposition(name or hash),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise InvalidRequestError(f"media_type {media_type[:40]!r} is none", fix="give one like image/png")
    if if_none_match is not None and (tag in if_none_match or if_none_match.strip() == "*"):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    first, end = 0, size
    status = HTTPStatus.OK
    wanted = _range(range, size) if range is not None and if_range in (None, tag) else None
    if wanted is not None:
        first, end = wanted
        if first >= end:
            answer = problem(InvalidRequestError(f"the content has no byte {first}", why=f"it has {size} bytes"))
            answer.status_code = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            answer.headers["Content-Range"] = f"bytes */{size}"
            return answer
        status = HTTPStatus.PARTIAL_CONTENT
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - first)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return _Content(_sent(contents, hash, first, end), status, headers, media_type)


class _Content(StreamingResponse):
    """An answer that breaks off, and does not look complete, where the store cannot give the rest of it."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except LlamaDeployError as error:
            log.warning("a content breaks off", code=error.code, error=str(error))


async def _sent(contents: Contents, hash_: str, first: int, end: int) -> AsyncIterator[bytes]:
    while first < end:
        data, _ = await contents.read(hash_, first, min(PIECE_BYTES, end - first))
        if not data:
            raise not_there(hash_)  # it was removed meanwhile
        first += len(data)
        yield data


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and end of the range that a header asks for, `None` for a header that is to be ignored (RFC 9110)."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    first = int(found[1])
    last = int(found[2]) if found[2] else size - 1
    return None if found[2] and last < first else (first, min(size, last + 1))


def disposition(name: str) -> str:
    """`Content-Disposition` (RFC 6266) for a file of this name: to be saved, never shown, and without a path."""
    plain = re.sub(r"[\x00-\x1f\x7f/\\]", "_", name).strip(". ") or "content"
    ascii_name = re.sub(r'[^\x20-\x7e]|["%;]', "_", plain)
    message = Message()
    message.add_header("Content-Disposition", "attachment", filename=ascii_name)
    utf8 = quote(plain.encode("utf-8", "replace"), safe="")
    return f"{message['Content-Disposition']}; filename*=UTF-8''{utf8}"
