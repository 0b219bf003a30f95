"""A control plane as a program: `control_plane_program.py PORT STORE SETTINGS [shared]`, where SETTINGS is JSON.

It says its address on standard output when it takes requests, and ends with code 0 on SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import uvloop

from llama_deploy.apiserver import Deployment
from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import LlamaDeployError
from llama_deploy.runtime.failpoints import arm_from_environment


async def main(port: int, store: str, settings: str, *, shared: bool = False) -> None:
    arm_from_environment()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Deployment(
        [], store=store, port=port, settings=EngineSettings(**json.loads(settings)), quiet=True, shared=shared
    ) as deployment:
        sys.stdout.write(f"{deployment.url}\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], shared=sys.argv[4:] == ["shared"]))
    except LlamaDeployError as error:
        sys.exit(error.render())
