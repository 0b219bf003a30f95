"""Two control planes that share a store, as processes, one of which crashes when the lead changes or work is passed on.

The one that crashes is started first, or joins; what the test asks goes to both, or to it alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex

from tests.processes.children import Child, System, _environment
from tests.support import PROCESS_S, eventually

from llama_deploy.client import Client
from llama_deploy.errors import LlamaDeployError
from llama_deploy.state_stores.shards import SHARDS


class Pair(System):
    """Two control planes on ports of their own; instances and clients know both."""

    def __init__(self, folder: Path, ports: Iterable[int], database: str) -> None:
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        super().__init__(folder, 0, lease_s=2.0, heartbeat_s=0.2, shard_lease_s=1.5, recovery_grace_s=0.3)
        self.url = ",".join(self.urls)
        self.database = f"{database}?schema=s_{token_hex(4)}"
        self.planes: dict[int, Child] = {}
        self._failpoints: dict[int, str | None] = {}

    async def start_one(self, number: int, *, failpoint: str | None = None) -> Child:
        """Start one of the two and wait until it takes requests, or has ended."""
        port = self.urls[number].rpartition(":")[2]
        child = await Child.start(
            "control_plane_program.py",
            port,
            self.database,
            json.dumps(self.settings),
            "shared",
            folder=self.folder,
            environment=_environment(failpoint),
        )
        self.children.append(child)
        self.planes[number], self._failpoints[number] = child, failpoint
        await child.line()
        return child

    def client_of(self, number: int) -> Client:
        """A client that knows one of the two."""
        return Client(self.urls[number], timeout_s=PROCESS_S)

    async def shared_out(self) -> None:
        """Wait until both lead their part, and both know.

        On a machine that stands still a lease may end before that, and one of them crash where it is to crash when it
        takes over: that one starts again.
        """
        for number in (0, 1):
            async with self.client_of(number) as client:

                async def done(client: Client = client) -> bool:
                    for other, child in self.planes.copy().items():
                        if child.process.returncode is not None:
                            await self.start_one(other, failpoint=self._failpoints[other])
                    try:
                        leadership = (await client.status())["leadership"]
                    except LlamaDeployError:
                        return False
                    parts = Counter({member["name"]: len(member["shards"]) for member in leadership["members"]})
                    return sorted(parts.values()) == [SHARDS // 2] * 2

                await eventually(done, PROCESS_S)
