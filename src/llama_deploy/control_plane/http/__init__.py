"""The control plane over HTTP: `/v1` with its WebSockets, and the server that runs it."""
