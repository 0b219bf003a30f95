"""Who is told by webhooks, as a program: `receiver_program.py HOST PORT SINK`. Some requests it answers badly.

What it has noted and then not acknowledged comes again, under the same id.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import uvloop
from tests.chaos.kinds_of_data import WEBHOOK_SECRET
from tests.chaos.sink import Sink
from tests.support.receiver import Received, Receiver

from llama_deploy.client.webhooks import verify

BADLY = 0.1
"""How many of the requests are answered as if nothing had come of them."""


class Noting(Receiver):
    """Notes genuine requests at the sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def answer_to(self, request: Received) -> int | str | tuple[int, dict[str, str]]:
        verify(request.headers, request.body, WEBHOOK_SECRET)
        self._sink.hear(request.headers["webhook-id"], request.body.decode())
        if random.random() < BADLY:
            return "break" if random.random() < 1 / 3 else random.choice([503, 429])
        return 204


async def main(host: str, port: int, sink: Path) -> None:
    server = await Noting(Sink(sink)).serve(host, port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
