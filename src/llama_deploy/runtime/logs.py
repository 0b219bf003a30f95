"""Structured logs through the standard `logging`, so that whoever embeds this decides where they go.

`get_logger(name)` gives a logger that takes an event and key-value pairs. Without any set-up only warnings are shown,
on stderr, as `logging` does it; `configure` is for programs of our own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog


def _render(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """The event, its key-value pairs, and its traceback if there is one."""
    trace = event.pop("exception", None)
    text = str(event.pop("event", ""))
    pairs = " ".join(f"{key}={value}" for key, value in event.items())
    return text + (f"  {pairs}" if pairs else "") + (f"\n{trace}" if trace else "")


_PROCESSORS: list[Any] = [structlog.stdlib.filter_by_level, structlog.processors.format_exc_info, _render]


def get_logger(name: str) -> Any:
    """A logger for one module; `name` as in `logging`."""
    return structlog.wrap_logger(
        logging.getLogger(name), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
    )


def configure(level: str = "INFO") -> None:
    """Show logs of this package on stderr, one line each, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logger = logging.getLogger("llama_deploy")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
