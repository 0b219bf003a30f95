"""Whether a deployment, as it is on disk now, would start: another process imports all that it names, and says so.

What runs has imported the code as it was. Nothing of that process outlives whoever waits for it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from llama_deploy.runtime.lifeline import SUPERVISOR_PID
from llama_deploy.runtime.programs import end_program, start_program

CHECK_TIMEOUT_S = 60.0
"""How long the code of a deployment may take to load."""


async def why_not(file: Path) -> str:
    """Why the deployment in a file would not start; empty where it would."""
    process = await start_program(
        *(sys.executable, "-P", "-m", "llama_deploy.cli", "serve", str(file), "--check"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, SUPERVISOR_PID: str(os.getpid())},
    )
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError:
        return f"{file} takes more than {CHECK_TIMEOUT_S:g} s to load"
    finally:
        await end_program(process)
    if process.returncode == 0:
        return ""
    return said.decode("utf-8", "replace").rstrip() or f"{file} cannot be loaded: exit code {process.returncode}"
