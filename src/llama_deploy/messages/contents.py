"""How contents travel on an instance's connection: in parts, among all other operations, without holding them up.

An instance offers a content by its hash; one that is there already need not be sent. Whoever sends has at most
`WINDOW_PARTS` parts on their way that the other side has not taken. Transfers do not survive their connection: what was
under way is offered, or asked for, again.
"""

from __future__ import annotations

from llama_deploy.messages.operation import Operation
from llama_deploy.runtime.files import PART_BYTES

__all__ = [
    "PART_BYTES",
    "WINDOW_PARTS",
    "ContentKept",
    "ContentPart",
    "ContentRefused",
    "ContentTaken",
    "ContentWanted",
    "DropContent",
    "GetContent",
    "OfferContent",
    "PutContent",
]

WINDOW_PARTS = 4
"""Parts of one content that may be on their way at the same time."""


class _OfTransfer(Operation, frozen=True):
    """An operation about one transfer; the instance numbers its transfers."""

    transfer: int


# --- instance -> control plane --------------------------------------------------------------------------------------


class OfferContent(_OfTransfer, frozen=True):
    """The instance has a content to send. Answered by `ContentWanted`, `ContentKept`, or `ContentRefused`."""

    hash: str
    size_bytes: int


class PutContent(_OfTransfer, frozen=True):
    """One part of the offered content, in order from 0. Answered by `ContentTaken`, after the last `ContentKept`."""

    position: int
    data: bytes


class GetContent(_OfTransfer, frozen=True):
    """A range of a content. Answered by `ContentPart` or `ContentRefused`."""

    hash: str
    first: int
    limit: int


class DropContent(_OfTransfer, frozen=True):
    """The instance gives the transfer up."""


# --- control plane -> instance --------------------------------------------------------------------------------------


class ContentWanted(_OfTransfer, frozen=True):
    """The offered content is to be sent."""


class ContentTaken(_OfTransfer, frozen=True):
    """A part is in the store."""

    position: int


class ContentKept(_OfTransfer, frozen=True):
    """The content is in the store, whole and checked."""


class ContentPart(_OfTransfer, frozen=True):
    """The range that was asked for, as far as the content goes."""

    data: bytes
    size_bytes: int
    """Size of the whole content."""


class ContentRefused(_OfTransfer, frozen=True):
    """The transfer is over; `problem` is the JSON of problem+json."""

    problem: bytes
