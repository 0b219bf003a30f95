"""The control plane of a run as a program: `plane_program.py CONFIGURATION`, the JSON of a `PlaneConfiguration`."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
from typing import Any

import msgspec
import uvloop
from tests.chaos.kinds_of_data import SECRET_NAME, WEBHOOK_SECRET
from tests.chaos.policy import ChaosOrchestrator

from llama_deploy.apiserver import Deployment
from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import StoreLockedError, StoreUnavailableError
from llama_deploy.runtime.logs import configure
from llama_deploy.types import WebhookSettings

STORE_IS_AWAY = 75
"""Exit code of a control plane that could not open its store, or found it in use: whoever started it tries again."""
WEBHOOK_HOSTS = ("127.0.0.1", "198.18.0.0/15")


class PlaneConfiguration(msgspec.Struct, frozen=True):
    """What one control plane is."""

    run: str
    """Folder of the run, by which its processes are found."""
    host: str
    port: int
    store: str
    message_queue: str | None = None
    public_url: str | None = None
    """Where the others find it, when several share the store."""
    settings: dict[str, Any] = {}
    key_file: str | None = None
    """With what the store's content is encrypted."""


async def main(given: PlaneConfiguration) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Deployment(
        [],
        store=given.store,
        encryption_key_file=given.key_file,
        message_queue=given.message_queue,
        host=given.host,
        port=given.port,
        allow_remote=True,
        shared=given.public_url is not None,
        public_url=given.public_url,
        orchestrator=ChaosOrchestrator(final_message_type=None),
        settings=EngineSettings(**given.settings),
        webhooks=WebhookSettings(hosts=WEBHOOK_HOSTS, secrets={SECRET_NAME: WEBHOOK_SECRET}),
    ):
        await stop.wait()


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # where it stands, into its log
    configure("WARNING")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(msgspec.json.decode(sys.argv[1], type=PlaneConfiguration)))
    except (StoreLockedError, StoreUnavailableError) as error:
        sys.stderr.write(error.render() + "\n")
        sys.exit(STORE_IS_AWAY)
