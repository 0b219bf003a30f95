"""The people of the desk as services, each in a process of its own. They know nothing of the order they work in."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from model import complete

from llama_deploy import ServiceContext, service

HERE = Path(__file__).resolve().parent
PACE_S = float(os.environ.get("DESK_PACE_S", "0.15"))
"""What looking something up takes: here nothing is far away, at a real desk a model or a back office is."""
BEGUN = os.environ.get("DESK_BEGUN")

TOPICS = {
    "cash machine": ("atm", "cash", "machine", "withdrawal", "money out"),
    "top-up": ("top up", "top-up", "topped"),
    "exchange rate": ("exchange", "rate", "currency"),
    "fee": ("fee", "extra pound", "statement", "1£"),
    "transfer": ("transfer", "transferred", "landlord", "rent"),
    "card": ("card", "reactivate", "arrive"),
}


@service
async def triage(letter: dict[str, Any]) -> dict[str, Any]:
    """What a letter is about."""
    text = letter["text"].lower()
    scores = {topic: sum(word in text for word in words) for topic, words in TOPICS.items()}
    guess = max(scores, key=lambda topic: scores[topic])
    said = await complete(f"One of {list(TOPICS)} for this letter: {letter['text']}", otherwise=guess)
    return {"letter": letter, "topic": said if said in TOPICS else guess}


@service
async def bookings(letter: dict[str, Any], topic: str, context: ServiceContext) -> dict[str, Any]:
    """What the account says: what was booked, and how much of it is ours to give back."""
    await _look_up(context)
    found = json.loads((HERE / "bookings.json").read_text(encoding="utf-8")).get(letter["id"], [])
    seen: set[tuple[str, int]] = set()
    wrong = 0
    for booking in found:
        same = (booking["what"], booking["cents"])
        if (
            same in seen
            or booking.get("paid_out") is False
            or booking.get("returned") is False
            or booking.get("announced") is False
        ):
            wrong += booking["cents"]
        wrong += booking.get("overcharged_cents", 0)
        seen.add(same)
    return {"letter": letter, "topic": topic, "found": found, "wrong_cents": wrong}


@service
async def rules(letter: dict[str, Any], topic: str, context: ServiceContext) -> dict[str, Any]:
    """The paragraph of Regulation E that fits best, by Okapi BM25 (Robertson and Zaragoza, 2009)."""
    await _look_up(context)
    lines = (HERE / "regulation_e.txt").read_text(encoding="utf-8").splitlines()
    words = [_words(line) for line in lines]
    average = sum(map(len, words)) / len(words)
    asked = _words(f"{letter['text']} {topic}") + ["error", "correct", "consumer"]

    def score(document: list[str]) -> float:
        counts = Counter(document)
        total = 0.0
        for word in set(asked) & counts.keys():
            holding = sum(word in other for other in words)
            rarity = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
            total += rarity * counts[word] * 2.2 / (counts[word] + 1.2 * (0.25 + 0.75 * len(document) / average))
        return total

    best = max(range(len(lines)), key=lambda number: score(words[number]))
    place, _, text = lines[best].partition(" ")
    return {"place": place, "text": text}


@service
async def tone(letter: dict[str, Any], topic: str, context: ServiceContext) -> str:
    """How the writer feels, so that the reply begins as it should."""
    del topic
    await _look_up(context)
    return "upset" if re.search(r"!|twice|nothing|not? (?:okay|there)|haven't", letter["text"]) else "calm"


@service
async def policy(bookings: dict[str, Any], rules: dict[str, str], tone: str) -> dict[str, Any]:
    """What is to be done: money that is ours to give back goes back, once a person agrees."""
    cents = bookings["wrong_cents"]
    why = f"{bookings['topic']}: {_euro(cents)} are wrong" if cents else f"{bookings['topic']}: nothing is wrong"
    return {**bookings, "rule": rules, "tone": tone, "refund_cents": cents, "why": why}


@service
async def reply(policy: dict[str, Any], approval: dict[str, Any] | None = None) -> dict[str, Any]:
    """The letter that goes out, and what became of the case."""
    begin = "We are sorry for the trouble." if policy["tone"] == "upset" else "Thank you for writing."
    if approval is not None and "rejected" in approval:
        outcome, text = "no refund", f"We cannot pay this back: {approval['rejected']}."
    elif approval is not None:
        outcome = f"refund {_euro(approval['refund_cents'])}"
        text = approval.get("text") or f"We have paid back {_euro(approval['refund_cents'])}."
    else:
        outcome, text = "answered", f"About your {policy['topic']}: we have looked, and our books are in order."
    drafted = f"{begin} {text} ({policy['rule']['place']})"
    prompt = f"Write this to a customer, in three sentences, changing no figure: {drafted}"
    said = await complete(prompt, otherwise=drafted)
    return {"id": policy["letter"]["id"], "topic": policy["topic"], "outcome": outcome, "reply": said}


async def _look_up(context: ServiceContext) -> None:
    """Take the time that it takes."""
    _note(context)
    await asyncio.sleep(PACE_S)


def _note(context: ServiceContext) -> None:
    """Tell a file that a step begins, so that one that begins twice can be seen."""
    if BEGUN is not None:
        with Path(BEGUN).open("a", encoding="utf-8") as file:
            file.write(f"{context.step_id} {context.service}\n")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _euro(cents: int) -> str:
    return f"{cents / 100:.2f}"
