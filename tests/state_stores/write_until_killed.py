"""A process that records tasks without end, and prints the id of each one that is settled. Something kills it.

Run it with the path of the store; `LLAMA_DEPLOY_FAILPOINT` arms a failpoint.
"""

from __future__ import annotations

import asyncio
import os
import sys

from llama_deploy.errors import LlamaDeployError
from llama_deploy.runtime.failpoints import arm_from_environment
from llama_deploy.state_stores import SQLiteStore
from llama_deploy.state_stores.base import SharedWrite, Transition
from llama_deploy.testing.recording import chunk, completion, submission

WAITING_MAX = 64


async def main(path: str) -> None:
    store = SQLiteStore(path)
    await store.open()
    arm_from_environment()
    room = asyncio.Semaphore(WAITING_MAX)

    def hand_over(said: str, **changes: object) -> None:
        def settled(error: LlamaDeployError | None) -> None:
            assert error is None, error
            os.write(1, f"{said}\n".encode())
            room.release()

        store.record(Transition(settled=settled, **changes))  # type: ignore[arg-type]

    number = 0
    while True:
        number += 1
        await room.acquire()
        shared = [SharedWrite("room", "last", number - 1, str(number).encode())]
        hand_over(f"submitted t{number}", **submission(f"t{number}", shared=shared), chunks=[chunk(f"t{number}", 0, 2)])
        if number % 2:
            await room.acquire()
            hand_over(f"completed t{number}", **completion(f"t{number}"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
