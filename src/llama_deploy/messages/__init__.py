"""Messages: the envelope that orchestrators fill in, and the frames that connections carry.

Frames are imported from `llama_deploy.messages.frames` by those who hold a connection.
"""

from llama_deploy.messages.base import QueueMessage, QueueMessageStats

__all__ = ["QueueMessage", "QueueMessageStats"]
