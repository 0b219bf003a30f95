"""`llamactl explain`: what an error code means, from the same docstrings as the page on errors."""

from __future__ import annotations

import click

from llama_deploy.cli.settings import Settings, with_settings
from llama_deploy.errors import EXIT_CODE, HTTP_STATUS, LlamaDeployError, all_errors


@click.command()
@click.argument("code", required=False)
@with_settings
def explain(settings: Settings, code: str | None) -> None:
    """What an error code means, and what it maps to; without a code, all of them."""
    from llama_deploy.cli.output import Column, Printer

    printer = Printer(settings)
    known = {cls.code: cls for cls in all_errors()}
    if code is None:
        columns = [Column("code", "CODE"), Column("title", "TITLE"), Column("exit_code", "EXIT")]
        wide = [Column("http_status", "HTTP"), Column("name", "CLASS")]
        printer.table([_document(cls) for cls in known.values()], columns, wide=wide, name="code")
        return
    found = known.get(code.upper()) or known.get(f"LD{code}")
    if found is None:
        raise click.UsageError(f"There is no error '{code}'; `llamactl explain` lists them all.")
    document = _document(found)
    if settings.output == "text":
        printer.line(f"{found.code}: {found.title}\n\n{document['text']}\n")
        printer.line(
            f"Class {document['name']}, HTTP status {document['http_status']}, exit code {document['exit_code']}."
        )
    else:
        printer.record(document, name=found.code)


def _document(cls: type[LlamaDeployError]) -> dict[str, object]:
    import inspect

    return {
        "code": cls.code,
        "title": cls.title,
        "name": cls.__name__,
        "text": inspect.getdoc(cls) or "",
        "http_status": HTTP_STATUS[cls.category],
        "exit_code": EXIT_CODE[cls.category],
    }
