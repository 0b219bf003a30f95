"""A client of the quick start, as the published guide has it: `python client.py [URL of the API server]`."""

import sys

from llama_deploy import Client
from llama_deploy.types import TaskDefinition


def main(url: str = "http://localhost:4501") -> None:
    """Run one task, and print what comes of it."""
    client = Client(api_server_url=url, timeout=30)
    deployment = client.sync.apiserver.deployments.get("QuickStart")
    print(deployment.tasks.run(TaskDefinition(input='{"message": "Hello from Python!"}')))


if __name__ == "__main__":
    main(*sys.argv[1:])
