"""Workflows of this folder as services, those that the command line names, as the published guide launches them."""

# mypy: ignore-errors
import asyncio
import sys

from workflows_of_guides import WORKFLOWS

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow


async def main() -> None:
    """Runs until it is interrupted."""
    tasks = [
        asyncio.create_task(
            deploy_workflow(
                WORKFLOWS[name],
                WorkflowServiceConfig(host="127.0.0.1", port=8002, service_name=name),
                ControlPlaneConfig(),
            )
        )
        for name in sys.argv[1:]
    ]
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main())
