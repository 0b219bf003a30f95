"""The clients: `Client` for asyncio, `SyncClient` with the same methods for everybody else.

Both speak to a control plane over one connection, or inside its process. What else this package holds serves them.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names

if TYPE_CHECKING:
    from llama_deploy.client.async_client import Client, StreamEvent
    from llama_deploy.client.in_process import ClientPort, InProcessTransport
    from llama_deploy.client.sync_client import SyncClient
    from llama_deploy.connections.transport import Transport
    from llama_deploy.connections.websocket import WebSocketTransport
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Client": "llama_deploy.client.async_client",
            "ClientPort": "llama_deploy.client.in_process",
            "InProcessTransport": "llama_deploy.client.in_process",
            "StreamEvent": "llama_deploy.client.async_client",
            "SyncClient": "llama_deploy.client.sync_client",
            "Transport": "llama_deploy.connections.transport",
            "WebSocketTransport": "llama_deploy.connections.websocket",
        },
    )

__all__ = [
    "Client",
    "ClientPort",
    "InProcessTransport",
    "StreamEvent",
    "SyncClient",
    "Transport",
    "WebSocketTransport",
]
