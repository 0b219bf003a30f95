"""`python -m llama_deploy.apiserver`: the API server with its defaults, as the published one is started."""

import asyncio
import sys

from llama_deploy.apiserver.deployments.serving import ServerOptions, serve_api

if __name__ == "__main__":
    asyncio.run(serve_api(ServerOptions(), lambda text: print(text, file=sys.stderr)))  # noqa: T201 - a program
