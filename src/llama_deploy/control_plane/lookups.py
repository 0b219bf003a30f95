"""Operations of an instance that speak of contents: the store is asked about those first, then the operation is done.

What the instance says meanwhile waits, so that everything is done in the order in which it was said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.transfers import Transfers
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages.frames import Answer, Events, Park
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types.artifacts import MARK_BYTES, hashes_in

if TYPE_CHECKING:
    from llama_deploy.control_plane.port import Port

log = get_logger("llama_deploy.gateway")


class Lookups:
    """What one connection has to do with contents: these lookups, and its transfers."""

    def __init__(self, engine: Engine, port: Port) -> None:
        self._engine = engine
        self._port = port
        self.transfers = Transfers(engine.contents, port.post)
        self.busy = False
        """The store is being asked: what comes now waits."""
        self._waiting: list[Any] = []

    def wait(self, operations: Sequence[Any]) -> None:
        """Keep what came while the store was being asked."""
        self._waiting += operations

    def before(self, then: Callable[[Any], None]) -> Callable[[Any], None]:
        """`then`, called once the contents that an operation speaks of were looked up: at once where it is of none."""

        def handle(operation: Answer | Events | Park) -> None:
            events = operation.events
            value = operation.result if type(operation) is Answer else _value(operation)
            if MARK_BYTES not in value and not (events and any(MARK_BYTES in event for event in events)):
                then(operation)
                return
            self.busy = True
            self._engine.spawn(self._look(operation, value, then))

        return handle

    async def _look(self, operation: Answer | Events | Park, value: bytes, then: Callable[[Any], None]) -> None:
        contents = self._engine.contents
        streamed = hashes_in(b",".join(operation.events))
        try:
            await contents.learn(hashes_in(value))
            if streamed:
                await contents.use_in_stream(operation.step_id.rpartition(":")[0], streamed)
        except LlamaDeployError as error:  # the store cannot be read: all of it comes again with the next connection
            log.warning("the contents that an instance speaks of cannot be looked up", error=str(error))
            self._port.close()
            self._port.closed()
            return
        self.busy = False
        then(operation)
        waiting, self._waiting = self._waiting, []
        self._port.receive(waiting)


def _value(operation: Answer | Events | Park) -> bytes:
    if isinstance(operation, Answer):
        return operation.result
    return operation.prompt if isinstance(operation, Park) else b""
