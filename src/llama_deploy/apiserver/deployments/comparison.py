"""How a version differs from the one that runs, before anything is done about it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from llama_deploy.apiserver.deployments.versions import Version

TEXT_BYTES_MAX = 65_536
"""A longer file is said to have changed, and not shown."""


def difference(before: Version | None, after: Version) -> dict[str, Any]:
    """What would change: `changes` by kind, and `text` for people, with unified diffs."""
    name = after.file.name
    if before is None:
        services = ", ".join(service.name for service in after.file.services)
        return {"name": name, "new": True, "changes": {}, "text": f"{name} is new, with the services {services}"}
    if before.digest == after.digest:
        return {"name": name, "new": False, "changes": {}, "text": f"{name} would not change"}
    changes = {"files": _files(before.files, after.files), "sources": _sources(before, after)}
    named = [before.tree / before.file.path.name, after.tree / after.file.path.name]
    lines = _diff(named[0].read_bytes(), named[1].read_bytes(), after.file.path.name)
    for path, how in changes["files"].items():
        if path != after.file.path.name:
            lines += _of_file(before, after, path, how)
    lines += [f"{service}: {said}" for service, said in changes["sources"].items()]
    return {"name": name, "new": False, "changes": changes, "text": "\n".join(lines)}


def _files(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            found[path] = "added"
        elif path not in after:
            found[path] = "removed"
        elif before[path] != after[path]:
            found[path] = "changed"
    return found


def _of_file(before: Version, after: Version, path: str, how: str) -> list[str]:
    old = (before.tree / path).read_bytes() if how != "added" else b""
    new = (after.tree / path).read_bytes() if how != "removed" else b""
    return _diff(old, new, path)


def _diff(old: bytes, new: bytes, path: str) -> list[str]:
    if old == new:
        return []
    try:
        texts = old.decode(), new.decode()
    except UnicodeDecodeError:
        return [f"{path}: other bytes"]
    if max(map(len, texts)) > TEXT_BYTES_MAX:
        return [f"{path}: changed"]
    names = (f"{path} (runs)" if old else "nothing", f"{path} (would run)" if new else "nothing")
    return list(difflib.unified_diff(texts[0].splitlines(), texts[1].splitlines(), *names, lineterm="", n=2))


def _sources(before: Version, after: Version) -> dict[str, str]:
    found = {}
    for service in after.file.services:
        old, new = before.places.get(service.name), after.place(service.name)
        if old is None:
            found[service.name] = "new service"
        elif old.commit != new.commit:
            found[service.name] = f"commit {old.commit or 'none'} becomes {new.commit or 'none'}"
        elif old.python != new.python:
            found[service.name] = "another Python environment"
    gone = {service.name for service in before.file.services} - {service.name for service in after.file.services}
    return found | dict.fromkeys(sorted(gone), "removed")
