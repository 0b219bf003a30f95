"""What agents of llama-index remember of a conversation, as JSON and back.

An agent keeps a memory object in its workflow's context, which the engine leaves out of a saved context when it cannot
be written down. Here each kind of memory that is known to be whole in JSON has a form of its own, made of messages and
plain settings; whatever else a memory holds (a tokenizer of one's own, blocks, a database) makes it one that cannot be
saved. Nothing of llama-index is imported here: an object can only be one of its memories when it is loaded already.
"""

from __future__ import annotations

import sys
from typing import Any

_BUFFER, _MEMORY = "ChatMemoryBuffer", "Memory"
_KEPT_ELSEWHERE = frozenset({"chat_store", "sql_store", "tokenizer_fn", "memory_blocks", "memory_blocks_template"})
"""Fields that are no plain settings: written in another way, or required to be the default."""
_ACTIVE, _ARCHIVED = "active", "archived"


class Memories:
    """The memory objects of one run: written down when its context is saved, made again when that is read."""

    def __init__(self) -> None:
        self._messages: dict[int, list[dict[str, Any]]] = {}
        """By `id` of a memory, what stands in its database; read ahead, since that has to be awaited."""

    async def look_at(self, values: list[Any]) -> None:
        """Read what stands in the databases of these values, as far as they are memories that have one."""
        self._messages.clear()
        memory_type = _loaded("llama_index.core.memory", _MEMORY)
        for value in values if memory_type is not None else ():
            if type(value) is memory_type and _in_memory(value.sql_store):
                self._messages[id(value)] = await _rows(value)

    def form_of(self, value: Any) -> dict[str, Any] | None:
        """The JSON form of a memory; `None` for anything else. Raises `ValueError` for one that has no whole form."""
        base = _loaded("llama_index.core.memory.types", "BaseMemory")
        if base is None or not isinstance(value, base):
            return None
        if type(value) is _loaded("llama_index.core.memory", _BUFFER):
            return {"kind": _BUFFER, **_settings(value), "messages": _buffered(value)}
        if type(value) is _loaded("llama_index.core.memory", _MEMORY):
            if id(value) not in self._messages:
                raise ValueError(f"the messages of its {_MEMORY} stand in a database of its own")
            return {"kind": _MEMORY, **_settings(value), "rows": self._messages[id(value)]}
        raise ValueError(f"a {type(value).__name__} cannot be saved")


def is_agent(workflow: Any) -> bool:
    """Whether a workflow is a single agent of llama-index, which has a name and a description."""
    base = _loaded("llama_index.core.agent.workflow.base_agent", "BaseWorkflowAgent")
    return base is not None and isinstance(workflow, base)


def memory_from(form: dict[str, Any]) -> Any:
    """The memory that a form stands for. Raises `ValueError` for a kind that is not known or not installed."""
    kind = form.get("kind")
    made = _loaded("llama_index.core.memory", kind) if kind in (_BUFFER, _MEMORY) else None
    if made is None:
        raise ValueError(f"{kind!r} is not a memory that this workflow's code has loaded")
    if kind == _BUFFER:
        message = _loaded("llama_index.core.llms", "ChatMessage")
        stored = {key: [message.model_validate(one) for one in found] for key, found in form["messages"].items()}
        return made(**form["settings"], chat_store=_type("storage.chat_store", "SimpleChatStore")(store=stored))
    store = _type("storage.chat_store.sql", "SQLAlchemyChatStore")(table_name=form["table"], db_data=form["rows"])
    return made(**form["settings"], sql_store=store)


def _settings(memory: Any) -> dict[str, Any]:
    """The plain settings of a memory. Raises `ValueError` where it has others that JSON cannot hold."""
    if memory.tokenizer_fn is not _type("utils", "get_tokenizer")():
        raise ValueError(f"its {type(memory).__name__} has a tokenizer of its own")
    fields = type(memory).model_fields
    if getattr(memory, "memory_blocks", None):
        raise ValueError(f"its {type(memory).__name__} has blocks")
    template = fields.get("memory_blocks_template")
    if template is not None and memory.memory_blocks_template != template.default:
        raise ValueError(f"its {type(memory).__name__} has a template of its own")
    plain = memory.model_dump(mode="json", include=fields.keys() - _KEPT_ELSEWHERE)
    settings = {name: value for name, value in plain.items() if name in fields}
    return {"settings": settings} | ({"table": memory.sql_store.table_name} if "sql_store" in fields else {})


def _buffered(memory: Any) -> dict[str, list[dict[str, Any]]]:
    """The messages of a buffer by key; the store's own way of writing them fails with some versions of pydantic."""
    store = memory.chat_store
    if type(store) is not _type("storage.chat_store", "SimpleChatStore"):
        raise ValueError(f"the messages of its {type(memory).__name__} stand in a {type(store).__name__}")
    return {key: [message.model_dump(mode="json") for message in found] for key, found in store.store.items()}


def _in_memory(store: Any) -> bool:
    """Whether a memory's database is gone with the process."""
    if type(store) is not _type("storage.chat_store.sql", "SQLAlchemyChatStore"):
        return False
    engine = store._async_engine  # noqa: SLF001 - one that was given counts, whatever the address says
    if engine is None:
        return store.async_database_uri in ("sqlite+aiosqlite:///:memory:", "sqlite+aiosqlite://")
    return engine.url.get_backend_name() == "sqlite" and engine.url.database in (None, "", ":memory:")


async def _rows(memory: Any) -> list[dict[str, Any]]:
    """What stands in a memory's database, in the form in which a new one is filled: what was put away first."""
    status = _type("storage.chat_store.base_db", "MessageStatus")
    store = memory.sql_store
    rows: list[dict[str, Any]] = []
    for key in await store.get_keys():
        for name in (_ARCHIVED, _ACTIVE):
            for message in await store.get_messages(key, status=status(name)):
                row = {"key": key, "timestamp": len(rows), "role": message.role.value, "status": name}
                rows.append(row | {"data": message.model_dump(mode="json")})
    return rows


def _type(module: str, name: str) -> Any:
    """What llama-index has under a name; asked for where one of its memories is there, so it is loaded."""
    return _loaded(f"llama_index.core.{module}", name)


def _loaded(module: str, name: str) -> Any:
    """What a module has under a name, `None` where the module is not loaded."""
    return getattr(sys.modules.get(module), name, None)
