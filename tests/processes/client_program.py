"""A client as a program: `client_program.py URL FOLDER WORK…` does the named works and says so."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.processes.works import WORKS
from tests.support import PROCESS_S

from llama_deploy.client import Client
from llama_deploy.runtime.failpoints import arm_from_environment


async def main(url: str, folder: Path, names: list[str]) -> None:
    arm_from_environment()
    async with Client(url, timeout_s=PROCESS_S) as client:
        states = await asyncio.gather(*(WORKS[name](client, folder) for name in names))
    sys.stdout.write(json.dumps({task: state for each in states for task, state in each.items()}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
