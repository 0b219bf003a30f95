"""Binary data in what user code takes and returns: stored once, with an artifact in its place.

Only values that have no JSON form of their own are looked through, so results without binary data pay nothing.
"""

from __future__ import annotations

from typing import Any

from llama_deploy.errors import ResultNotSerialisableError
from llama_deploy.services.base import StepContext
from llama_deploy.services.results import result_from_value
from llama_deploy.types import TaskResult
from llama_deploy.types.artifacts import Artifact, File


async def result_of(value: Any, context: StepContext) -> TaskResult:
    """The result that stands for `value`, with every `bytes` and `File` in it stored as an artifact.

    Raises `ResultNotSerialisableError` for anything else that has no JSON form, and what storing raises.
    """
    try:
        return result_from_value(value)
    except ResultNotSerialisableError:
        kept = await kept_in(value, context)
        if kept is value:
            raise
        return result_from_value(kept)


async def kept_in(value: Any, context: StepContext) -> Any:
    """`value` with artifacts in the place of binary data in it; the same object where there is none."""
    if isinstance(value, bytes | bytearray | memoryview):
        return await context.save(value)
    if isinstance(value, File):
        return await context.save(value.path, name=value.name, media_type=value.media_type)
    if isinstance(value, dict):
        items = {key: await kept_in(item, context) for key, item in value.items()}
        return items if any(items[key] is not value[key] for key in value) else value
    if isinstance(value, list | tuple):
        parts = [await kept_in(item, context) for item in value]
        return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
    return value


async def filled(args: list[Any], kwargs: dict[str, Any], names: tuple[str, ...]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments with the content in the place of each artifact that a parameter of bytes was given."""
    read = {name: await kwargs[name].read() for name in names if isinstance(kwargs.get(name), Artifact)}
    return args, {**kwargs, **read}
