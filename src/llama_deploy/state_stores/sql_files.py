"""The SQL of the stores: named statements, and numbered migrations in two phases.

A migration `0003_name.sql` adds what a later version needs and leaves what an earlier one uses: it runs when the first
process of the later version opens the store. `0003_name.after.sql` takes away what only earlier versions used, and runs
once none of them is left. A store that one process has for itself runs both at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Migration:
    """One numbered step of a schema; either phase may be empty."""

    number: int
    before: str
    after: str


@cache
def load_statements(engine: str) -> Mapping[str, str]:
    """The named statements of an engine's `statements.sql`, read once."""
    text = (resources.files(__package__) / "sql" / engine / "statements.sql").read_text(encoding="utf-8")
    statements: dict[str, str] = {}
    for block in text.split("-- name: ")[1:]:
        name, _, body = block.partition("\n")
        statements[name.strip()] = body.partition("\n-- ---")[0].strip().removesuffix(";")
    return statements


@cache
def load_migrations(engine: str) -> Sequence[Migration]:
    """The migrations of an engine in order, numbered from 1 without a gap; read once."""
    folder = resources.files(__package__) / "sql" / engine
    before: dict[int, str] = {}
    after: dict[int, str] = {}
    for item in folder.iterdir():
        if item.name[:4].isdigit():
            phase = after if item.name.endswith(".after.sql") else before
            phase[int(item.name[:4])] = item.read_text(encoding="utf-8")
    numbers = sorted({*before, *after})
    assert numbers == list(range(1, len(numbers) + 1)), "migrations are numbered without a gap"
    return [Migration(number, before.get(number, ""), after.get(number, "")) for number in numbers]
