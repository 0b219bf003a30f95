"""The page on the deployment file names every key, as it is used or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llama_deploy.apiserver.deployment_keys import FILE_KEYS
from llama_deploy.apiserver.shapes import Key, Record, Shape, Table, TextOrRecord

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment-file.md"
OF_OTHER_QUEUES = {"message-queue"}
ELSEWHERE = OF_OTHER_QUEUES | {"limits"}
"""Records whose keys the page does not list one by one; those of `limits` are the page on settings."""


def keys(shape: Shape) -> Iterator[tuple[str, Key]]:
    if isinstance(shape, TextOrRecord):
        yield from keys(shape.record)
    elif isinstance(shape, Table):
        yield from keys(shape.value)
    elif isinstance(shape, Record):
        for name, key in shape.keys.items():
            yield name, key
            if name not in ELSEWHERE:
                yield from keys(key.shape)


def test_the_page_names_every_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    used, _, published = page.partition("## Published keys")
    for name, key in keys(FILE_KEYS):
        unused = bool(key.ignored) or name in OF_OTHER_QUEUES
        assert f"`{name}`" in published or f".{name}`" in published if unused else name in used, name


def test_every_key_says_what_it_is() -> None:
    assert [name for name, key in keys(FILE_KEYS) if not key.doc.endswith(".")] == []
