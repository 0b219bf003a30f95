"""`llamactl init`: the files of a first deployment, small enough to be read in a minute.

Writes only files that do not exist yet, all of them or none.
"""

from __future__ import annotations

from pathlib import Path

import click

from llama_deploy.cli.settings import Settings, with_settings

DEPLOYMENT = """\
# What runs, and where. Check it with: llamactl serve --check
name: {name}

control-plane:
  port: 8000

orchestrator:
  name: simple # each task goes to the service that it names
  parameters:
    max-retries: 3 # how often a step that failed is tried again

services:
  shout:
    import-path: services:shout
  researcher:
    import-path: services:researcher
    concurrency: 4 # tasks that one process works on at once
"""

SERVICES = '''\
"""The services of this deployment: plain functions. `llamactl dev` starts them again when this file changes."""

from __future__ import annotations

import asyncio

from llama_deploy import ServiceContext, service


@service
async def shout(text: str) -> str:
    """Says it louder."""
    return text.upper() + "!"


@service
async def researcher(topic: str, context: ServiceContext) -> dict[str, object]:
    """Looks into a topic, and tells on the way what it is doing."""
    questions = [f"What is known about {topic}?", f"Who disagrees about {topic}?", f"What comes next for {topic}?"]
    for question in questions:
        context.stream({"looking_into": question})
        await asyncio.sleep(0.2)  # where a model, a search or a database would be asked
    return {"topic": topic, "questions": questions}
'''

README = """\
# {name}

    llamactl dev                                          # control plane and services, started again on change
    llamactl run shout -a text hello
    llamactl run researcher -i '{{"topic": "tides"}}' --stream
    llamactl tasks list

`deployment.yml` says what runs, `services.py` is what it does. Data lives in `.llama_deploy/`.
"""

GITIGNORE = """\
.llama_deploy/
__pycache__/
"""


@click.command()
@click.argument("folder", required=False, default=Path(), type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", help="The deployment's name [the folder's].")
@with_settings
def init(settings: Settings, folder: Path, name: str | None) -> None:
    """Write a deployment file and two services into FOLDER (this one by default), to start from."""
    from llama_deploy.cli.output import Printer
    from llama_deploy.errors import ProjectExistsError

    named = name or _name_of(folder)
    files = {
        "deployment.yml": DEPLOYMENT.format(name=named),
        "services.py": SERVICES,
        "README.md": README.format(name=named),
        ".gitignore": GITIGNORE,
    }
    existing = [file for file in files if (folder / file).exists()]
    if existing:
        raise ProjectExistsError(
            f"{folder.resolve()} has {_listed(existing)} already",
            why="Nothing was written.",
            fix="llamactl init OTHER_FOLDER   start in another folder",
            files=existing,
        )
    _write(folder, files)
    printer = Printer(settings)
    document = {"name": named, "folder": str(folder.resolve()), "files": list(files)}
    printer.record(document, name=named, text=lambda: "\n".join(str(folder / file) for file in files))
    enter = "" if folder == Path() else f"cd {folder} && "
    printer.progress(f"Next: {enter}llamactl dev   and, beside it: llamactl run shout -a text hello")


def _write(folder: Path, files: dict[str, str]) -> None:
    """Write the files. Raises `SettingError` where the folder cannot be written."""
    from llama_deploy.errors import SettingError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"cannot write to {folder.resolve()}", why=str(error)) from error


def _name_of(folder: Path) -> str:
    """The folder's name as a deployment's name: other characters than letters, digits, `_`, `-`, `.` become `-`."""
    import re

    return re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-.")[:100] or "demo"


def _listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
