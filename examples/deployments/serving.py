"""An API server for the examples beside this: a process of its own, which ends with the block."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path


@contextlib.asynccontextmanager
async def api_server(folder: Path, *paths: Path) -> AsyncIterator[str]:
    """Run `llamactl apiserver PATHS` with its data in a folder; its URL, once it takes requests."""
    ready = folder / "ready.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llama_deploy.cli", "-q", "apiserver", *map(str, paths)),
        *("--port", "0", "--data", str(folder / "data"), "--ready-file", str(ready)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        while not ready.exists():
            if process.returncode is not None:
                raise SystemExit("the API server did not start")
            await asyncio.sleep(0.02)
        yield json.loads(ready.read_text())["url"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
