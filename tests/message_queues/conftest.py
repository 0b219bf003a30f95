"""Lets the assertions of the conformance suite speak."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("llama_deploy.testing")
