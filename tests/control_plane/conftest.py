"""Fixtures of the control plane's tests: no failpoint stays armed, and warnings of a log do not hide in silence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama_deploy.runtime import failpoints


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()
