"""Which sentences stand for the rest, by the words that they share.

The graph is LexRank's (Erkan and Radev, 2004): sentences are its nodes, tied by the cosine of their tf-idf vectors.
Its centrality is Katz's, worked out by networkx: an eigenvector would give all to the one cluster that repeats itself
most. Owns no notion of a document: `summarise` picks from one document with it, `write` from many.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from steps.language import content_stems

TIE_MIN = 0.1
"""Cosines below this are chance: the threshold of the LexRank paper."""
TOO_ALIKE = 0.5
"""A sentence this close to one already picked would only repeat it."""
KATZ_REACH = 0.9
"""How much a sentence gains from the ties of those that it is tied to, 0 to 1."""
SENTENCES_MAX = 600

Vector = dict[str, float]


def vectors(sentences: Sequence[str], language: str = "en") -> list[Vector]:
    """Each sentence as tf-idf weights by stem, of length 1; empty for a sentence with no word that carries meaning."""
    counts = [Counter(content_stems(sentence, language)) for sentence in sentences]
    held_by = Counter(stem for count in counts for stem in count)
    weighted = [
        {stem: times * math.log(1 + len(sentences) / held_by[stem]) for stem, times in count.items()}
        for count in counts
    ]
    lengths = [math.sqrt(sum(weight * weight for weight in vector.values())) for vector in weighted]
    return [
        {stem: weight / length for stem, weight in vector.items()}
        for vector, length in zip(weighted, lengths, strict=True)
    ]


def cosine(one: Vector, other: Vector) -> float:
    """How alike two sentences are, from 0 to 1."""
    if len(one) > len(other):
        one, other = other, one
    return sum(weight * other[stem] for stem, weight in one.items() if stem in other)


def centralities(weights: Sequence[Vector]) -> list[float]:
    """How central each sentence is, 1 for the most central one. Past 600 sentences the rest count as 0."""
    import networkx as nx  # type: ignore[import-untyped]

    considered = weights[:SENTENCES_MAX]
    ties: dict[tuple[int, int], float] = defaultdict(float)
    holders: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for index, vector in enumerate(considered):
        for stem, weight in vector.items():
            for other, other_weight in holders[stem]:
                ties[other, index] += weight * other_weight
            holders[stem].append((index, weight))
    graph = nx.Graph()
    graph.add_nodes_from(range(len(considered)))
    graph.add_weighted_edges_from((one, other, tie) for (one, other), tie in ties.items() if tie >= TIE_MIN)
    if not graph.number_of_edges():
        return [1.0] * len(weights)
    heaviest = max(weight for _, weight in graph.degree(weight="weight"))
    reach = KATZ_REACH / heaviest  # below 1 / the largest eigenvalue, which the heaviest degree bounds: it converges
    central: dict[int, float] = nx.katz_centrality(graph, alpha=reach, weight="weight", tol=1e-5, normalized=False)
    most = max(central.values())
    return [central[index] / most if index in central else 0.0 for index in range(len(weights))]


def pick(
    scores: Sequence[float], weights: Sequence[Vector], groups: Sequence[int], *, most: int, group_most: int
) -> list[int]:
    """The best sentences that do not repeat each other, in reading order; a score of 0 is never picked.

    `groups` names the section (or document) of each sentence, of which at most `group_most` are picked: centrality
    alone would take all from the one part that repeats itself most.
    """
    picked: list[int] = []
    for index in sorted(range(len(scores)), key=lambda index: (-scores[index], index)):
        if len(picked) == most or scores[index] <= 0:
            break
        full = sum(groups[other] == groups[index] for other in picked) >= group_most
        if not full and all(cosine(weights[index], weights[other]) < TOO_ALIKE for other in picked):
            picked.append(index)
    return sorted(picked)
