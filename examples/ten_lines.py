"""The smallest program: one service, one task, one outcome, in one process. Run it: python examples/ten_lines.py"""

import asyncio

from llama_deploy import Deployment, service


@service
async def shout(text: str) -> str:
    return text.upper()


async def main() -> None:
    async with Deployment(services=[shout]) as deployment:
        print(await deployment.run("shout", text="hello"))


asyncio.run(main())
