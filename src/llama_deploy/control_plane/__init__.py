"""Who decides and records: the control plane.

`ControlPlane` is the whole of it; the HTTP server in `http` and the embedded `Deployment` stand on it. Names are
imported when they are first used: a process that only serves reads the settings of a deployment, and nothing more.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names

if TYPE_CHECKING:
    from llama_deploy.control_plane.plane import ControlPlane
    from llama_deploy.control_plane.settings import EngineSettings
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ControlPlane": "llama_deploy.control_plane.plane",
            "EngineSettings": "llama_deploy.control_plane.settings",
        },
    )

__all__ = ["ControlPlane", "EngineSettings"]
