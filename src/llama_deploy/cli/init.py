"""`llamactl init`: the files of a first deployment, small enough to be read in a minute.

Writes only files that do not exist yet, all of them or none.
"""

from __future__ import annotations

from pathlib import Path

import click

from llama_deploy.cli.settings import Settings, with_settings

TEMPLATES = {
    "function": "two plain functions",
    "workflow": "a llama-index workflow that can ask a person",
    "agents": "three agents that hand questions on",
}
"""What there is to start from: folders of `templates`."""

FOLDER = Path(__file__).resolve().parent / "templates"
NAME = "NAME"
"""Stands in the files for the deployment's name."""

GITIGNORE = """\
.llama_deploy/
__pycache__/
"""

NEXT = {
    "function": "llamactl run shout -a text hello",
    "workflow": "llamactl run report -a topic tides --stream",
    "agents": "llamactl run desk -i '\"Was invoice 1042 paid?\"'",
}
"""A first task for each."""


@click.command()
@click.argument("folder", required=False, default=Path(), type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", help="The deployment's name [the folder's].")
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    default="function",
    show_default=True,
    help="; ".join(f"{name}: {what}" for name, what in TEMPLATES.items()) + ".",
)
@with_settings
def init(settings: Settings, folder: Path, name: str | None, template: str) -> None:
    """Write a deployment file and its services into FOLDER (this one by default), to start from."""
    from llama_deploy.cli.output import Printer
    from llama_deploy.errors import ProjectExistsError

    named = name or _name_of(folder)
    files = {
        path.name: path.read_text(encoding="utf-8").replace(NAME, named)
        for path in sorted((FOLDER / template).iterdir())
        if path.is_file()
    }
    files[".gitignore"] = GITIGNORE
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
    printer.progress(f"Next: {enter}llamactl dev   and, beside it: {NEXT[template]}")


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
