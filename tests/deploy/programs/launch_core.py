"""The core, as the published guide launches it; the address comes from the environment."""

# mypy: ignore-errors
import asyncio

from llama_deploy import ControlPlaneConfig, SimpleMessageQueueConfig, deploy_core


async def main() -> None:
    """Runs until it is interrupted."""
    await deploy_core(control_plane_config=ControlPlaneConfig(), message_queue_config=SimpleMessageQueueConfig())


if __name__ == "__main__":
    asyncio.run(main())
