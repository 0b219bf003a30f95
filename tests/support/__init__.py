"""What tests share: waiting for a condition, and the like. Nothing here is part of the product."""

from tests.support.waiting import DEADLINE_S, PROCESS_S, eventually

__all__ = ["DEADLINE_S", "PROCESS_S", "eventually"]
