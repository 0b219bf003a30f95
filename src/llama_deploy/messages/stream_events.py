"""How an event of a workflow is written in a task's stream: its fields, and beside them what kind of event it is.

The stream of a task may hold any JSON value. Only an object that carries `EVENT_TYPE_KEY` is a workflow's event. The
keys with a leading `$` are ours; readers that know the published form of a stream get the fields without them.
"""

from __future__ import annotations

from typing import Any

EVENT_TYPE_KEY = "$type"
"""The event's class, as `module.QualifiedName`."""
EVENT_OMITTED_KEY = "$omitted"
"""Names of fields that have no JSON form and are therefore missing; absent where there are none."""


def published_event(data: Any) -> Any:
    """The stream event as the published system wrote it: for a workflow's event the fields alone."""
    if not isinstance(data, dict) or EVENT_TYPE_KEY not in data:
        return data
    return {key: value for key, value in data.items() if key not in (EVENT_TYPE_KEY, EVENT_OMITTED_KEY)}
