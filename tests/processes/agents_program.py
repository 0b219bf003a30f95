"""An instance with agents of llama-index as a program: `agents_program.py URL SINK`.

The tool that asks a person appends a line to the file SINK first: the step's id, its attempt, its process.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop
from tests.processes.agents import crew, desk, reasoner

from llama_deploy.services import WorkflowService, current_step, serve_services

SINK = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def effect() -> None:
    """What the tool does before it asks."""
    step = current_step()
    os.write(SINK, f"{step.step_id} {step.attempt} {os.getpid()}\n".encode())


async def main() -> bool:
    services = [
        WorkflowService(make(effect), name=name)
        for name, make in (("desk", desk), ("crew", crew), ("reasoner", reasoner))
    ]
    return await serve_services(services, control_plane_url=sys.argv[1], drain_timeout_s=20.0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(0 if runner.run(main()) else 4)
