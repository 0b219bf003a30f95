"""The program of the README, with a service that a test can hold up: `ten_lines_program.py [TASK_ID]`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.support import eventually

from llama_deploy import Deployment, ServiceContext, service

OPTIONS = {"task_id": sys.argv[1]} if len(sys.argv) > 1 else {}


@service
async def shout(context: ServiceContext, text: str) -> str:
    """Upper case, once there is a file `open`."""
    with open(f"{context.step_id}.{context.attempt}.ran", "w"):  # noqa: ASYNC230, PTH123 - it is quick
        pass
    await eventually(Path("open").exists, 600)
    return text.upper()


async def main() -> None:
    async with Deployment(services=[shout]) as deployment:
        sys.stdout.write(await deployment.run("shout", text=f"hello from {os.environ['RUN']}", **OPTIONS) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
