"""Names of a package that are imported when they are first used (PEP 562).

It keeps `import llama_deploy` and `llamactl --help` fast. It knows nothing about the names; each package keeps its own
table, and repeats it in a `TYPE_CHECKING` block for static checkers.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of the module `package`, where `homes` says which module defines which name.

    A home is a module that has it under the same name, or `module:name`.

    A name is imported at its first use and kept in the module. An unknown name raises `AttributeError`; what the
    import of its home raises is passed on, unless files of another distribution among ours explain it.
    """

    def getattr_(name: str) -> Any:
        home = _published_home(package, name) or homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = home.partition(":")
        try:
            value = getattr(importlib.import_module(module), attribute or name)
        except (ImportError, AttributeError) as error:
            importlib.import_module("llama_deploy.runtime.installed").explain(error)
            raise
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return getattr_, dir_


def published_names(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The same for a module that answers for published names and has no table of its own."""
    return lazy_names(module, {})


def _published_home(module: str, name: str) -> str | None:
    """Where a published name lives that a module answers for beside its own."""
    from llama_deploy._published import HOMES

    return HOMES.get(module, {}).get(name)
