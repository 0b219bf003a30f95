"""Group chat: a writer and a critic talk until the critic is content; then somebody sums up."""

from __future__ import annotations

from typing import Any

from model import complete
from show import show

from llama_deploy import service
from llama_deploy.orchestrators import GroupChat, Transcript

SENTENCES = ["The tide is really very high.", "The tide is very high.", "The tide is high."]


@service
async def writer(topic: str, turns: list[dict[str, Any]], first: int) -> str:
    """Writes a sentence, and again what the critic has said about it."""
    number = (first + len(turns)) // 2
    return await complete(f"Write one sentence on {topic}. So far: {turns}", otherwise=SENTENCES[min(number, 2)])


@service
async def critic(topic: str, turns: list[dict[str, Any]], first: int) -> str:
    """Says what is wrong with the last sentence, or that nothing is."""
    del topic, first
    last = str(turns[-1]["said"])
    word = next((word for word in ("really", "very") if word in last), "")
    return await complete(
        f"Name a word to strike, or say 'good': {last}", otherwise=f"strike {word}" if word else "good"
    )


@service
def sum_up(topic: str, turns: list[dict[str, Any]]) -> str:
    """The last sentence, and how long it took."""
    return f"{topic}: {turns[-2]['said']} (after {len(turns)} turns)"


def content(transcript: Transcript) -> bool:
    """Whether the critic has nothing more to say."""
    return transcript[-1] == {"speaker": "critic", "said": "good"}


policy = GroupChat({"writer": "writer", "critic": "critic"}, until=content, turns_max=10, conclude="sum_up")
show(policy, [writer, critic, sum_up], "the tide")
