"""Parallel: three reviewers read at the same time; one of them fails, and the others are merged."""

from __future__ import annotations

from show import show

from llama_deploy import NonRetryableError, service
from llama_deploy.orchestrators import Parallel, Sequence


@service
def spelling(text: str) -> list[str]:
    """Words that are spelled wrongly."""
    return [word for word in text.split() if word == "teh"]


@service
def length(text: str) -> list[str]:
    """What is too long."""
    return [word for word in text.split() if len(word) > 12]


@service
def facts(text: str) -> list[str]:
    """Always busy elsewhere."""
    raise NonRetryableError(f"nobody knows about {text.rsplit(maxsplit=1)[-1]}")


@service
def merge(**remarks: list[str]) -> str:
    """All remarks in one line."""
    return "; ".join(f"{name}: {', '.join(found) or 'fine'}" for name, found in remarks.items())


reviews = Parallel("spelling", "length", "facts", failures="skip")
show(Sequence(reviews, "merge"), [spelling, length, facts, merge], "teh tide is incontrovertibly high")
