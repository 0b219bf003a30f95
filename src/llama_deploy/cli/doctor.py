"""`llamactl doctor`: what keeps things from working, on this machine and at the server, and how to mend it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama_deploy.cli.settings import Settings, with_settings

if TYPE_CHECKING:
    from llama_deploy.cli.checks import Finding

MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED", "skipped": "-"}


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--offline", is_flag=True, help="Only this machine; no server is asked.")
@with_settings
def doctor(settings: Settings, file: Path | None, *, offline: bool) -> int:
    """Look for what keeps things from working: here, in FILE (deployment.yml by default), and at the server.

    Ends with the exit code of the first thing that fails, 0 if nothing does.
    """
    from llama_deploy.cli.output import Column, Printer
    from llama_deploy.errors import EXIT_CODE

    findings = asyncio.run(_examined(settings, file, offline=offline))
    printer = Printer(settings)
    columns = [Column("check", "CHECK"), Column("result", "RESULT", lambda value: MARKS[value]), Column("what", "WHAT")]
    wide = [Column("code", "CODE"), Column("why", "WHY"), Column("fix", "FIX")]
    printer.table([_document(finding) for finding in findings], columns, wide=wide, name="check")
    if printer.for_people:
        for finding in findings:
            if finding.error is not None:
                printer.progress(f"\n{finding.check}: {finding.error.render()}")
    failed = [finding.error for finding in findings if finding.result == "failed" and finding.error is not None]
    return EXIT_CODE[failed[0].category] if failed else 0


async def _examined(settings: Settings, path: Path | None, *, offline: bool) -> list[Finding]:
    from llama_deploy.cli import checks

    found = [checks.python(), checks.packages()]
    file_found, file = checks.deployment_file(path)
    found.append(file_found)
    if file is not None:
        found.append(checks.port(file))
        found += checks.store(file)
        found.append(await checks.broker(file))
    if not offline:
        of_file = checks.url_of_file(file) if file is not None else None
        url = settings.server if settings.server_given or of_file is None else of_file
        said: list[dict[str, Any]] = []
        at_server = [finding async for finding in checks.server(settings, url, said.append)]
        if file is not None and said and url == of_file:  # who uses the port, and perhaps the store, is known
            found = [checks.of_itself(finding, file, said[0]) for finding in found]
        found += at_server
    return found


def _document(finding: Finding) -> dict[str, Any]:
    error = finding.error
    told = {"code": error.code, "why": error.why, "fix": error.fix} if error is not None else {}
    return {"check": finding.check, "result": finding.result, "what": finding.what, **told}
