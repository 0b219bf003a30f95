"""How what user code returned becomes a `TaskResult`: text stays text, everything else is a JSON value.

The value is encoded here, once, before the step counts as done; so a value without a JSON form fails the step
instead of being lost on the way to the store.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llama_deploy.services.encoding import encode
from llama_deploy.types import TaskResult

_decode = msgspec.json.decode


def result_from_value(value: Any) -> TaskResult:
    """The result that stands for `value`, without ids: the control plane fills them in.

    A `str` is the result's text. Anything else is its `value`, as JSON types, and `result` is the JSON text for
    readers that know only text; None is the value null and an empty text. A `TaskResult` is taken as it is.
    Raises `ResultNotSerialisableError`.
    """
    if type(value) is str:
        return TaskResult(task_id="", history=[], result=value)
    if value is None:
        return TaskResult(task_id="", history=[], result="", kind="json")
    if isinstance(value, TaskResult):
        return value
    encoded = encode(value)
    return TaskResult(task_id="", history=[], result=encoded.decode(), kind="json", value=_decode(encoded))
