"""The market's services, in a module of the same name as the harbour's."""

import os

from llama_deploy import service


@service
async def sell(fish: str) -> str:
    """Sells a fish."""
    return f"{fish}, {os.environ['TIDE']} tide"
