"""What every store refuses before it touches a row, in the same words."""

from __future__ import annotations

from llama_deploy.errors import CommitConflictError, InvalidRequestError, StoreUnavailableError
from llama_deploy.state_stores.base import BLOB_PART_BYTES

_CURSOR_DIGITS_MAX = 18
"""Longer numbers are no row numbers: 63 bits, as in SQLite, have 19 digits."""


def row_number(cursor: str | None) -> int | None:
    """The row number that a cursor stands for. Raises `InvalidRequestError` for anything that no page gave out."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= _CURSOR_DIGITS_MAX):
        raise InvalidRequestError(
            f"cursor: {cursor!r} is not a cursor of this list", fix="pass `next` of the page before, unchanged"
        )
    return int(cursor)


def check_text(**texts: str) -> None:
    """Raise `InvalidRequestError` for a text that no store can keep."""
    for field, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"{field}: {text!r} is not a text that can be stored") from error


def check_part(hash_: str, position: int, data: bytes, part_bytes: int = BLOB_PART_BYTES) -> None:
    """Raise `InvalidRequestError` for a part that cannot be one."""
    check_text(hash=hash_)
    if position < 0 or len(data) > part_bytes:
        raise InvalidRequestError(
            f"part {position} of content {hash_} has {len(data)} bytes",
            fix=f"send parts of {BLOB_PART_BYTES} bytes, counted from 0; only the last may be shorter",
        )


def check_size(hash_: str, expected: int, there: int) -> None:
    """Raise `InvalidRequestError` when the parts of a content do not make it up."""
    if there != expected:
        raise InvalidRequestError(
            f"content {hash_} is not complete: {there} of {expected} bytes are there",
            fix="send the parts that are missing, then finish it again",
        )


def missing_content(hash_: str) -> StoreUnavailableError:
    """The error of a read of a content that is not there."""
    return StoreUnavailableError(f"content {hash_} is not in the store")


def unusable_content(hash_: str, task_id: str) -> CommitConflictError:
    """The error of a use that has no content, or no task."""
    return CommitConflictError(f"content {hash_} or task {task_id} is not there", fix="send the content first")


def existing_task(task_id: str) -> CommitConflictError:
    """The error of an import over a task."""
    return CommitConflictError(f"task {task_id} exists already", fix="remove it first, or leave it as it is")
