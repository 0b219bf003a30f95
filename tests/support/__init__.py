"""What tests share: waiting for a condition, and the like. Nothing here is part of the product."""

from tests.support.waiting import eventually

__all__ = ["eventually"]
