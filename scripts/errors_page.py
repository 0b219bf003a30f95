"""Writes docs/errors.md: one section for each error of `llama_deploy.errors`, from its docstring.

The page is what `llamactl explain CODE` says, for a reader without the program. `make docs` runs this; a test fails
when the page is not what this would write.
"""

from __future__ import annotations

import inspect
from itertools import groupby
from pathlib import Path

from llama_deploy.errors import EXIT_CODE, HTTP_STATUS, LlamaDeployError, all_errors

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"

OPENING = """\
# Errors

Every error has a code, says what happened, why, and what to do about it, and is the same on every surface: `llamactl`
prints it and ends with its exit code, HTTP sends it as problem+json (RFC 9457) with its status, and Python raises its
class, which has `code`, `what`, `why`, `fix` and `details`. All of them derive from
`llama_deploy.errors.LlamaDeployError`.

This page is written by `make docs` from the docstrings of the classes.
"""

PARTS = {
    "1": "Files, settings, installation",
    "2": "Tasks, sessions, services",
    "3": "Connections",
    "4": "The store",
    "5": "How tasks and steps end badly",
    "9": "Everything else",
}


def render() -> str:
    """The page as it should be. Raises `ValueError` when two errors share a code or one has no docstring."""
    errors = all_errors()
    codes = [error.code for error in errors]
    if repeated := {code for code in codes if codes.count(code) > 1}:
        raise ValueError(f"used by more than one error: {', '.join(sorted(repeated))}")
    parts = [OPENING]
    for digit, group in groupby(errors, key=lambda error: error.code.removeprefix("LD")[0]):
        listed = list(group)
        parts.append(f"## {PARTS[digit]}\n\n{table(listed)}")
        parts += [section(error) for error in listed]
    return "\n".join(parts)


def table(errors: list[type[LlamaDeployError]]) -> str:
    """An overview of one part."""
    rows = [
        f"| [{cls.code}](#{anchor(cls)}) | {cls.title} | {HTTP_STATUS[cls.category]} | {EXIT_CODE[cls.category]} |"
        for cls in errors
    ]
    return "\n".join(["| code | | HTTP status | exit code |", "|---|---|---|---|", *rows]) + "\n"


def section(error: type[LlamaDeployError]) -> str:
    """One error."""
    if not error.__doc__:
        raise ValueError(f"{error.__name__} has no docstring")
    return f"### {error.code} {error.title}\n\n`{error.__name__}`. {inspect.cleandoc(error.__doc__)}\n"


def anchor(error: type[LlamaDeployError]) -> str:
    """How a link within the page names the error's section."""
    return f"{error.code} {error.title}".lower().replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
