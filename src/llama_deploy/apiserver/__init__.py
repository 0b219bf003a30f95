"""What runs together: the deployment file, the loader of its services, the supervisor of its processes, `Deployment`.

Names are imported when they are first used, so that a process which only serves never pays for what only starts it.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names

if TYPE_CHECKING:
    from llama_deploy.apiserver.deployment import Deployment
    from llama_deploy.apiserver.deployment_file import json_schema, load_deployment_file
    from llama_deploy.apiserver.specs import DeploymentFile
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Deployment": "llama_deploy.apiserver.deployment",
            "DeploymentFile": "llama_deploy.apiserver.specs",
            "json_schema": "llama_deploy.apiserver.deployment_file",
            "load_deployment_file": "llama_deploy.apiserver.deployment_file",
        },
    )

__all__ = ["Deployment", "DeploymentFile", "json_schema", "load_deployment_file"]
