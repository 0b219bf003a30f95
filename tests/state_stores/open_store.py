"""A process that opens a store, prints `open` or the code of the error, and closes it at the end of its input."""

from __future__ import annotations

import asyncio
import sys

from llama_deploy.errors import LlamaDeployError
from llama_deploy.state_stores import SQLiteStore


async def main(path: str) -> None:
    store = SQLiteStore(path)
    try:
        await store.open()
    except LlamaDeployError as error:
        print(error.code, error, flush=True)  # noqa: T201 - its way to answer
        return
    print("open", flush=True)  # noqa: T201 - its way to answer
    sys.stdin.readline()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
