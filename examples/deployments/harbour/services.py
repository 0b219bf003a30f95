"""The harbour's services: version 1. A task is three steps, and each says which version it was done by."""

import asyncio
import os
from pathlib import Path

from llama_deploy import service

VERSION = 1


@service
async def unload(ship: int, gate: str = "") -> str:
    """Unloads a ship, once the gate is open."""
    while gate and not Path(gate).exists():  # noqa: ASYNC110, ASYNC240 - a gate that anybody can open, for the show
        await asyncio.sleep(0.05)
    return f"ship {ship}, {os.environ['TIDE']} tide, by version {VERSION}"


@service
async def weigh(cargo: str) -> str:
    """Weighs what was unloaded."""
    return f"{cargo} {VERSION}"


@service
async def stow(cargo: str) -> str:
    """Stows it away."""
    return f"{cargo} {VERSION}"
