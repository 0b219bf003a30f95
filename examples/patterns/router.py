"""Router: a classifier decides which specialist gets the question."""

from __future__ import annotations

from model import complete
from show import show

from llama_deploy import service
from llama_deploy.orchestrators import Router


@service
async def classify(input: str, routes: list[str]) -> str:
    """The name of a route."""
    guess = "weather" if "rain" in input else "sea"
    return await complete(f"One word of {routes} for: {input}", otherwise=guess)


@service
def sailor(question: str) -> str:
    """Knows the sea."""
    return f"The sea says: {question} Ask the moon."


@service
def farmer(question: str) -> str:
    """Knows the weather."""
    return f"The sky says: {question} Tomorrow."


policy = Router("classify", {"sea": "sailor", "weather": "farmer"}, default="sea")
show(policy, [classify, sailor, farmer], "When does the rain come?")
