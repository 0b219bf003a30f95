"""Multipart forms (RFC 7578) as the published client sends a deployment file: read whole, and bounded by who reads.

The standard library's parser of mail does the reading; a form that the server of deployments takes has a file or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.parser import BytesHeaderParser
from email.policy import HTTP

from llama_deploy.errors import InvalidRequestError

PARTS_MAX = 16


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form."""

    file_name: str | None
    data: bytes


def read_form(content_type: str, body: bytes) -> dict[str, Part]:
    """The fields of a form by name. Raises `InvalidRequestError` for what is no form."""
    header = BytesHeaderParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n")
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise InvalidRequestError(
            "the request is no form",
            why=f"its content type is {content_type or 'not given'}",
            fix="send multipart/form-data",
        )
    mark = b"\r\n--" + boundary.encode("latin-1")
    pieces = (b"\r\n" + body).split(mark)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):  # noqa: PLR2004 - before, one part, after
        raise InvalidRequestError("the form is cut short", why="its last boundary is missing")
    if len(pieces) - 2 > PARTS_MAX:
        raise InvalidRequestError(f"the form has more than {PARTS_MAX} parts")
    fields: dict[str, Part] = {}
    for piece in pieces[1:-1]:
        head, separator, data = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        described = BytesHeaderParser(policy=HTTP).parsebytes(head + b"\r\n\r\n")
        name = described.get_param("name", header="content-disposition")
        if not separator or not isinstance(name, str):
            raise InvalidRequestError("a part of the form has no name")
        fields[name] = Part(described.get_filename(), data)
    return fields
