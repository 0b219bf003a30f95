"""Words and sentences: how text is cut up, and which words carry no meaning of their own.

Sentences are found by sentencex, stems by snowball; neither loads anything from outside its package. Knows English
well, and seven more languages well enough to tell them apart. Knows nothing of documents.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable
from typing import Any

WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
"""A word begins and ends with a letter; an apostrophe or a hyphen may stand within."""

COMMONEST_WORDS = {
    "en": "the of and to in is that it was for on with as are this be by not from at which",
    "de": "der die das und ist nicht mit von den dem ein eine für auf sich im zu auch als wird",
    "fr": "le la les des et est une un pour dans que qui pas sur au du avec par plus ce sont",
    "es": "el la los las de que y en un una por con para es del se al lo como más",
    "it": "il lo gli che di e un una per con non sono del della è nel anche più si da",
    "nl": "de het een en van is dat niet op te zijn voor met die aan er ook als door naar",
    "pt": "o os as que de do da em um uma para com não é por mais dos como ao se",
    "sv": "och att det som en är på av för med den till inte om ett har de jag var från",
}
"""The twenty or so words by which a language is told, by its ISO 639-1 code."""

ENGLISH_FUNCTION_WORDS = """
a about above according actually after again against all almost along already also although always am among an another
any anyone anything around away back became because become been before being below better between both but came can
can't cannot come could did didn't do does doesn't doing don't done down due during each either else enough even ever
every example few first further get gets give given gives go goes going good got had has have haven't having he hence
her here hers him his how however i i.e if indeed instead into isn't it's its itself just keep kept know known last
later least less let like likely little made make makes making many may me might more moreover most much must my near
necessarily need needed needs neither never next no nor nothing now off often once one only onto or other others
otherwise our out over own part per perhaps possible put quite rather re really same say saying says see seem seems
seen several shall she should similar since so some something sometimes still such take taken tell than that's their
them then there thereafter therefore these they thing things those though three through throughout thus together too
took toward two under unless unlike until up upon us use used uses using usually various very via want wants wasn't
way we well went were weren't what whatever when whenever where whereas whether while who whole whose why will within
without won't would yes yet you your
"""
"""English words with no meaning of their own: a closed class, so the list can be whole."""

COMMONEST = {code: frozenset(listed.split()) for code, listed in COMMONEST_WORDS.items()}
FUNCTION_WORDS = COMMONEST["en"] | frozenset(ENGLISH_FUNCTION_WORDS.split())

STEMMERS = {
    "en": "english",
    "de": "german",
    "fr": "french",
    "es": "spanish",
    "it": "italian",
    "nl": "dutch",
    "pt": "portuguese",
    "sv": "swedish",
}


STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2212": "-"})
"""Typographic quotation marks, en dash and minus, and what a typewriter has for them."""


def straight(text: str) -> str:
    """Text with single spaces, straight quotation marks and plain hyphens, so that writing alike compares alike."""
    return " ".join(text.translate(STRAIGHT).split())


def words(text: str) -> list[str]:
    """The words of a text in order, as they are written."""
    return WORD.findall(text)


def language_of(text: str) -> str:
    """The language (ISO 639-1) whose function words make up most of the text; English when nothing tells."""
    seen = [word.lower() for word in words(text)[:5000]]
    shared = {code: sum(word in known for word in seen) for code, known in COMMONEST.items()}
    return max(shared, key=lambda code: (shared[code], code == "en"))


def sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of one paragraph, white space made single."""
    from sentencex import segment  # type: ignore[import-untyped]

    found: Iterable[str] = segment(language, " ".join(text.split()))
    return [sentence.strip() for sentence in found if sentence.strip()]


def stem(word: str, language: str = "en") -> str:
    """What a word shares with its other forms: "zone" and "zones" are one."""
    return _stem(word.lower(), language)


def content_stems(text: str, language: str = "en") -> list[str]:
    """The stems of the words that carry meaning, in order: no function words, no single letters."""
    ignored = FUNCTION_WORDS if language == "en" else COMMONEST.get(language, frozenset())
    lowered = (word.lower() for word in words(text))
    return [_stem(word, language) for word in lowered if len(word) > 1 and word not in ignored]


_STEMMING = threading.Lock()
"""A stemmer keeps the word that it works on in itself, and a service runs several steps in threads of one process."""


@functools.lru_cache(maxsize=50_000)
def _stem(word: str, language: str) -> str:
    with _STEMMING:
        stemmed: str = _stemmer(language).stemWord(word)
    return stemmed


@functools.cache
def _stemmer(language: str) -> Any:
    import snowballstemmer  # type: ignore[import-untyped]

    return snowballstemmer.stemmer(STEMMERS.get(language, "english"))
