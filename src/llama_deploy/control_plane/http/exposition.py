"""Numbers as text for monitoring systems: the text exposition format of Prometheus, version 0.0.4.

What is measured is said by the routes that answer with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fastapi import Response

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Measure:
    """One number, or one for each set of labels."""

    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]
    kind: Literal["gauge", "counter"] = "gauge"


def exposition(measures: Iterable[Measure]) -> Response:
    """The answer that has all of them."""
    lines: list[str] = []
    for measure in measures:
        lines += [f"# HELP {measure.name} {measure.help}", f"# TYPE {measure.name} {measure.kind}"]
        lines += [f"{measure.name}{_labels(labels)} {_number(value)}" for labels, value in measure.samples]
    return Response("\n".join([*lines, ""]), media_type=MEDIA_TYPE)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
