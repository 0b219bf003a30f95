"""The published import path of the helpers; they live in `running`."""

from __future__ import annotations

from llama_deploy.deploy.running import deploy_core, deploy_workflow

__all__ = ["deploy_core", "deploy_workflow"]
