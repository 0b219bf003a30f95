"""The keys of a rate in a deployment file: of a service's attempts, or of a token's requests."""

from __future__ import annotations

from llama_deploy.apiserver.shapes import Key, Number, Record
from llama_deploy.types.limits import RATE_COUNT_MOST, RATE_SECONDS_MOST

_COUNT = Number(integer=True, minimum=1, maximum=RATE_COUNT_MOST)

RATE_KEYS = Record(
    {
        "count": Key(shape=_COUNT, doc="How many may begin.", required=True),
        "seconds": Key(shape=Number(above=0, maximum=RATE_SECONDS_MOST), doc="Within how many seconds; 1 by default."),
        "burst": Key(shape=_COUNT, doc="How many of them may begin at once."),
    },
    "`rate`",
)
