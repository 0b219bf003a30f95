"""Who decides and records: the control plane.

`ControlPlane` is the whole of it; the HTTP server in `http` and the embedded `Deployment` stand on it.
"""

from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.settings import EngineSettings

__all__ = ["ControlPlane", "EngineSettings"]
