"""From a problem+json document back to the error that it describes, on whichever side it arrives."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from llama_deploy.errors import LlamaDeployError, all_errors


def from_problem(problem: Mapping[str, Any]) -> LlamaDeployError:
    """The error that a problem+json document of ours describes, as the class that its `code` names.

    A code of a later version becomes the root class and stands in `details["remote_code"]`.
    """
    details: dict[str, Any] = dict(found) if isinstance(found := problem.get("details"), Mapping) else {}
    cls = _by_code().get(str(problem.get("code")))
    if cls is None:
        cls = LlamaDeployError
        details["remote_code"] = problem.get("code")
    error = cls(str(problem.get("what") or problem.get("detail") or problem.get("title") or cls.title))
    error.why, error.fix, error.details = str(problem.get("why") or ""), str(problem.get("fix") or ""), details
    return error


@cache
def _by_code() -> dict[str, type[LlamaDeployError]]:
    return {cls.code: cls for cls in all_errors()}
