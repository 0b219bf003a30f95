"""Structured logs through the standard `logging`, so that whoever embeds this decides where they go.

`get_logger(name)` gives a logger that takes an event and key-value pairs; `leave_out` has secrets left out of every
line, tracebacks included. Without any set-up only warnings are shown,
on stderr, as `logging` does it; `configure` is for programs of our own. Nothing else is imported for it: every service
process pays for what this module needs.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary


class EventLogger:
    """Logs events in words, each with what it is about as key-value pairs."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **pairs: Any) -> None:
        """Something happened as it should."""
        self._log(logging.INFO, event, pairs)

    def warning(self, event: str, *, exception: str = "", **pairs: Any) -> None:
        """Something happened that should not, and is taken care of; `exception` is a traceback from elsewhere."""
        self._log(logging.WARNING, event, pairs, trace=exception)

    def error(self, event: str, *, exc_info: BaseException | None = None, **pairs: Any) -> None:
        """Something failed; with the traceback of the exception, if there is one."""
        self._log(logging.ERROR, event, pairs, exc_info)

    def exception(self, event: str, *, exc_info: BaseException | None = None, **pairs: Any) -> None:
        """Something failed; with the traceback of the exception, or of the one that is being handled."""
        self._log(logging.ERROR, event, pairs, exc_info or sys.exception())

    def _log(
        self,
        level: int,
        event: str,
        pairs: dict[str, Any],
        exc_info: BaseException | None = None,
        *,
        trace: str = "",
    ) -> None:
        if self._logger.isEnabledFor(level):
            said = " ".join(f"{key}={value}" for key, value in pairs.items())
            text = (f"{event}  {said}" if said else event) + (f"\n{trace}" if trace else "")
            if _hiding:
                if exc_info is not None:
                    text += "\n" + "".join(traceback.format_exception(exc_info)).rstrip()
                    exc_info = None
                for without in tuple(_hiding.values()):
                    text = without(text)
            self._logger.log(level, "%s", text, exc_info=exc_info, stacklevel=3)


_hiding: WeakKeyDictionary[Any, Callable[[str], str]] = WeakKeyDictionary()
"""By whoever asked for it: what makes a line one without secrets."""


def leave_out(owner: Any, without: Callable[[str], str] | None) -> None:
    """Pass every line of this process through `without`, for as long as `owner` lives or until it says `None`.

    Where several owners have said so, a line passes all of theirs: nobody's secret stands in a log that another one
    writes to as well. What is logged past this module, by libraries and by users' own code, is not touched.
    """
    if without is None:
        _hiding.pop(owner, None)
    else:
        _hiding[owner] = without


def get_logger(name: str) -> EventLogger:
    """A logger for one module; `name` as in `logging`."""
    return EventLogger(name)


def configure(level: str = "INFO") -> None:
    """Show logs of this package on stderr, one line each with its time in UTC, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("llama_deploy")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
