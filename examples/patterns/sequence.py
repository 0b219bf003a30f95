"""Sequence: a headline is drafted, shortened and checked, each step with the answer before it."""

from __future__ import annotations

from model import complete
from show import show

from llama_deploy import service
from llama_deploy.orchestrators import Sequence


@service
async def draft(topic: str) -> str:
    """A headline on a topic."""
    return await complete(f"Write a headline on {topic}.", otherwise=f"All that there is to know about {topic}")


@service
async def shorten(headline: str) -> str:
    """The headline in five words at most."""
    short = headline.replace("that there is ", "")
    return await complete(f"Shorten to five words: {headline}", otherwise=short)


@service
def check(headline: str) -> dict[str, object]:
    """The headline, and whether it is short enough."""
    return {"headline": headline, "short": len(headline.split()) <= 5}


show(Sequence("draft", "shorten", "check"), [draft, shorten, check], "tides")
