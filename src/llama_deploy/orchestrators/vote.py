"""Vote: the same node several times, and what most of its answers say."""

from __future__ import annotations

from typing import Any

from llama_deploy.orchestrators.nodes import Node
from llama_deploy.orchestrators.parallel import Parallel


class Vote(Parallel):
    """Asks the same node several times and ends with the output that more than half of the answers agree on."""

    def __init__(self, node: Node, times: int = 3) -> None:
        if times < 1:
            raise ValueError(f"times is {times}: it must be 1 or more")
        voters: dict[str, Any] = {f"voter-{number}": node for number in range(1, times + 1)}
        super().__init__(want="quorum", failures="skip", **voters)
