"""What every error of this package has: a code, what happened, why, and how to fix it; and where each kind leads.

Only the edges (HTTP, command line) know how a `Category` becomes a status or an exit code.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar


class Category(str, Enum):
    """What kind of refusal an error is; the edges map it to an HTTP status and an exit code."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    UNAUTHORISED = "unauthorised"
    FORBIDDEN = "forbidden"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    UNAVAILABLE = "unavailable"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    FAILED = "failed"
    INTERNAL = "internal"


HTTP_STATUS: dict[Category, int] = {
    Category.INVALID: 400,
    Category.NOT_FOUND: 404,
    Category.CONFLICT: 409,
    Category.UNAUTHORISED: 401,
    Category.FORBIDDEN: 403,
    Category.TOO_LARGE: 413,
    Category.TOO_MANY: 429,
    Category.UNAVAILABLE: 503,
    Category.UNREACHABLE: 502,
    Category.TIMEOUT: 504,
    Category.FAILED: 422,
    Category.INTERNAL: 500,
}
"""The HTTP status of each category (RFC 9110)."""

EXIT_CODE: dict[Category, int] = {
    Category.INVALID: 2,
    Category.NOT_FOUND: 4,
    Category.CONFLICT: 5,
    Category.UNAUTHORISED: 6,
    Category.FORBIDDEN: 6,
    Category.TOO_LARGE: 2,
    Category.TOO_MANY: 3,
    Category.UNAVAILABLE: 3,
    Category.UNREACHABLE: 3,
    Category.TIMEOUT: 7,
    Category.FAILED: 1,
    Category.INTERNAL: 1,
}
"""The exit code of `llamactl` for each category; 0 is success and 130 an interrupt."""


class LlamaDeployError(Exception):
    """The root of every error of this package.

    `what` says in one sentence what happened, `why` the cause when it is known, `fix` what to do about it.
    `details` are JSON values for programs (the names that exist, the limit that was met).
    """

    code: ClassVar[str] = "LD900"
    title: ClassVar[str] = "internal error"
    category: ClassVar[Category] = Category.INTERNAL

    def __init__(self, what: str, *, why: str = "", fix: str = "", **details: Any) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.details = details

    def __str__(self) -> str:
        return self.what if not self.why else f"{self.what} ({self.why})"

    def render(self) -> str:
        """The error as a person reads it, the same on every surface."""
        lines = [f"Error {self.code}: {self.what}"]
        lines += [f"  {line}" for line in self.why.splitlines()]
        for index, line in enumerate(self.fix.splitlines()):
            lines.append(("  Fix:  " if index == 0 else "        ") + line)
        lines.append(f"  More: llamactl explain {self.code}")
        return "\n".join(lines)

    def to_problem(self) -> dict[str, Any]:
        """The error as problem+json (RFC 9457) with the members `code`, `what`, `why`, `fix`, `details`."""
        return {
            "type": f"urn:llama-deploy:error:{self.code}",
            "title": self.title,
            "status": HTTP_STATUS[self.category],
            "detail": str(self),
            "code": self.code,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
            "details": self.details,
        }
