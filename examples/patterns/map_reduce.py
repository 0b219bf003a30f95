"""Map: one step for each word of a list that is known only when the task runs, four at a time, then one for all."""

from __future__ import annotations

from show import show

from llama_deploy import service
from llama_deploy.orchestrators import Map


@service
def count(text: str) -> int:
    """The vowels of a word."""
    return sum(letter in "aeiou" for letter in text)


@service
def add(text: str) -> int:
    """The sum of a list of numbers in JSON."""
    return sum(int(number) for number in text.strip("[]").split(","))


WORDS = ["tides", "come", "and", "go", "with", "the", "moon", "and", "sometimes", "with", "the", "sun"]

show(Map("count", over="words", reduce="add", at_once=4), [count, add], {"words": WORDS})
