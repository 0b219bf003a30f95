"""Message queues: they carry deliveries to competing consumers, and nothing else.

`MessageQueue` is the contract, `SimpleMessageQueue` the carrier within one process. None of them is trusted with
anything: the store publishes again what was lost.
"""

from llama_deploy.message_queues.base import Envelope, MessageQueue, Subscription
from llama_deploy.message_queues.simple import SimpleMessageQueue

__all__ = ["Envelope", "MessageQueue", "SimpleMessageQueue", "Subscription"]
