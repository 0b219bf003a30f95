"""The control plane of a run as a program: `plane_program.py PORT STORE SETTINGS`, where SETTINGS is JSON."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import signal
import sys

import uvloop
from tests.chaos.policy import ChaosOrchestrator

from llama_deploy.apiserver import Deployment
from llama_deploy.control_plane import EngineSettings


async def main(port: int, store: str, settings: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Deployment(
        [],
        store=store,
        port=port,
        orchestrator=ChaosOrchestrator(final_message_type=None),
        settings=EngineSettings(**json.loads(settings)),
    ):
        await stop.wait()


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # where it stands, into its log
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
