"""What all operations on connections are built on: an array, whose first element is the operation's name."""

from __future__ import annotations

from typing import Annotated

import msgspec

Index = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A position that whoever hears of it will count on from; a frame with one that makes no sense is none."""


class Operation(msgspec.Struct, array_like=True, tag=True, frozen=True, gc=False):
    """Base of all operations: an array on the wire, its first element the name of the operation."""
