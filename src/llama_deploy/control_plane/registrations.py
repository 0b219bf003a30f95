"""Services that are made known, or forgotten, without an instance that connects: their names, recorded.

Whether anybody serves them is the registry's affair; an instance that connects brings its own definition.
"""

from __future__ import annotations

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.registry import check_name, encode_definition
from llama_deploy.runtime import failpoint
from llama_deploy.types import ServiceDefinition


async def register(engine: Engine, definition: ServiceDefinition) -> None:
    """Know a service; of one that is known, what is given is changed. When this returns, it is recorded.

    Raises `InvalidRequestError` for a name that is none, `LimitExceededError` for one service too many.
    """
    name = definition.service_name
    check_name(name, engine.settings.id_length_max, own=False)
    known = engine.registry.definition(name)
    if known is None:
        engine.registry.check_services([definition])
    else:
        given = definition.model_dump(exclude_unset=True, exclude_none=True)
        definition = known.model_copy(update={key: getattr(definition, key) for key in given})
    await engine.store.put_service(name, encode_definition(definition))
    failpoint("services.recorded")
    engine.registry.define(definition)
    engine.common.changed()
    engine.admission.refresh(name)


async def deregister(engine: Engine, name: str) -> None:
    """Know a service no more: tasks for it are refused until it is registered again. Repeating it does nothing."""
    await engine.store.delete_service(name)
    engine.registry.forget(name)
    engine.common.changed()
