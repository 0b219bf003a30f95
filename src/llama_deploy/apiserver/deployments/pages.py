"""The page of a deployment: built when a version is made, and served by a process of its own or from its files.

What the page is told of its place is in its environment: the port to listen on, and the path that browsers have it at.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_deploy.apiserver.deployments.commands import Commands
from llama_deploy.apiserver.deployments.trees import copy_tree
from llama_deploy.apiserver.specs import PageSpec
from llama_deploy.errors import SourceError

BUILD_TIMEOUT_S = 1800.0
FOLDER = "ui"
_BUILT = ("dist", "build", "out")
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page that is built."""

    folder: Path
    """Where its command runs, or where its files are."""
    command: tuple[str, ...] = ()
    """What serves it; empty where its files are served as they are."""


def base_path(name: str) -> str:
    """Where browsers have the page of a deployment."""
    return f"/deployments/{name}/ui"


def environment_of(spec: PageSpec, name: str, base_folder: Path) -> dict[str, str]:
    """What the page's commands are told. Raises `SettingError` for what is referred to and not there."""
    published = {"LLAMA_DEPLOY_NEXTJS_BASE_PATH": base_path(name), "LLAMA_DEPLOY_NEXTJS_DEPLOYMENT_NAME": name}
    own = {"BASE_PATH": base_path(name), "HOST": "127.0.0.1"}
    return {**published, **own, **spec.variables(base_folder)}


async def build(
    spec: PageSpec, name: str, *, source: Path, target: Path, base_folder: Path, commands: Commands
) -> Page:
    """Copy the page's source to `target`, and build it there. Raises `SourceError` with what the build said."""
    await asyncio.to_thread(copy_tree, source, target)
    scripts = await asyncio.to_thread(_scripts, target)
    for words in spec.build if spec.build is not None else _usual_build(target, scripts):
        environment = {**os.environ, **environment_of(spec, name, base_folder)}
        ran = await commands.run(program(words), folder=target, environment=environment, timeout_s=BUILD_TIMEOUT_S)
        if ran.code or ran.timed_out:
            raise SourceError(
                f"the page of {name} cannot be built: `{' '.join(words)}`",
                why="it took too long" if ran.timed_out else f"{ran.out}\n{ran.err}".strip(),
                fix="correct the page, or say in `build` of `ui` how it is built",
            )
    if spec.command is not None:
        return Page(folder=target, command=spec.command)
    for script in ("start", "dev"):
        if script in scripts:
            return Page(folder=target, command=("npm", "run", script))
    for folder in (target, *(target / built for built in _BUILT)):
        if (folder / "index.html").is_file():
            return Page(folder=folder)
    raise SourceError(
        f"it is not known how the page of {name} is served",
        why="it has no index.html, and no package.json with a script `start`",
        fix="say in `command` of `ui` what serves it on $PORT",
    )


def _scripts(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "package.json").read_text(encoding="utf-8")).get("scripts", {})
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise SourceError("the package.json of the page cannot be read", why=str(error)) from error
    return found if isinstance(found, dict) else {}


def _usual_build(folder: Path, scripts: dict[str, Any]) -> list[tuple[str, ...]]:
    if not (folder / "package.json").is_file():
        return []
    install = "ci" if (folder / "package-lock.json").is_file() else "install"
    return [("npm", install), *([("npm", "run", "build")] if "build" in scripts else [])]


def program(words: Sequence[str]) -> tuple[str, ...]:
    """A command with its program by its full path; `python` is the one that runs this. Raises `SourceError`."""
    found = sys.executable if words[:1] == ("python",) else shutil.which(words[0]) if words else None
    if found is None:
        raise SourceError(f"there is no program `{words[0] if words else ''}` on this machine", fix="install it")
    return (found, *words[1:])


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def answers(port: int) -> None:
    """Wait until something takes connections there; whoever waits says for how long."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(_LOOK_AGAIN_S)
        else:
            writer.close()
            return
