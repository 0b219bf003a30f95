"""Graph: write and review until it is good, two times at most; a picture and a check of the facts in parallel."""

from __future__ import annotations

from typing import Any

from show import show

from llama_deploy import service
from llama_deploy.orchestrators import Edge, Graph


@service
def write(text: str, score: int = 0) -> str:
    """A text; given a review, a longer one."""
    return f"{text} and more" if score else f"A text about {text}"


@service
def review(text: str) -> dict[str, Any]:
    """The text with a score for its length."""
    return {"text": text, "score": min(10, len(text) // 3)}


@service
def paint(text: str) -> str:
    """A picture."""
    return f"a picture of {text}"


@service
def publish(review: dict[str, Any], paint: str) -> str:
    """Both together."""
    return f"{review['text']} (with {paint})"


def too_short(reviewed: dict[str, Any]) -> bool:
    """Whether it is to be written again."""
    return bool(reviewed["score"] < 8)


def good(reviewed: dict[str, Any]) -> bool:
    """Whether it may be published."""
    return not too_short(reviewed)


graph = Graph(
    {"write": "write", "review": "review", "paint": "paint", "publish": "publish"},
    [
        ("start", "write"),
        ("start", "paint"),
        ("write", "review"),
        Edge("review", "write", when=too_short, at_most=2),
        Edge("review", "publish", when=good),
        ("paint", "publish"),
        ("publish", "end"),
    ],
)
show(graph, [write, review, paint, publish], {"text": "tides"})
