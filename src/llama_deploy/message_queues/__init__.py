"""Message queues: they carry deliveries to competing consumers, and nothing else.

`MessageQueue` is the contract, `SimpleMessageQueue` the carrier within one process. None of them is trusted with
anything: the store publishes again what was lost.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names
from llama_deploy.message_queues.base import Envelope, MessageQueue, Subscription

if TYPE_CHECKING:
    from llama_deploy.message_queues.simple import InProcessQueue as SimpleMessageQueue
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"SimpleMessageQueue": "llama_deploy.message_queues.simple:InProcessQueue"}
    )

__all__ = ["Envelope", "MessageQueue", "SimpleMessageQueue", "Subscription"]
