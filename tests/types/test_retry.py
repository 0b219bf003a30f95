"""The retry policy as a value: its delays are bounded for every input, and its decision is one rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llama_deploy.types import RetryPolicy, TaskError
from llama_deploy.types.retry import RETRY_AFTER_S_MAX

policies = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 20),
    initial_s=st.floats(0, 1e6),
    multiplier=st.floats(1, 1e6),
    cap_s=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
)


def test_the_default_delays_double_from_half_a_second_up_to_a_minute() -> None:
    delays = [RetryPolicy().next_delay(failures) for failures in range(1, 10)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_nothing_failed_means_no_delay() -> None:
    assert RetryPolicy().next_delay(0) == 0.0


@given(policies, st.integers(1, 10**9))
def test_delays_are_bounded_and_never_shrink(policy: RetryPolicy, failures: int) -> None:
    assert 0.0 <= policy.next_delay(failures) <= policy.next_delay(failures + 1) <= policy.cap_s


@given(policies, st.integers(1, 50), st.none() | st.floats())
def test_the_decision_is_a_bounded_delay_or_to_give_up(
    policy: RetryPolicy, failures: int, retry_after_s: float | None
) -> None:
    delay_s = policy.delay_for(TaskError(retry_after_s=retry_after_s), failures)
    if failures > policy.max_retries:
        assert delay_s is None
    else:
        assert delay_s is not None
        assert policy.next_delay(failures) <= delay_s <= max(policy.cap_s, RETRY_AFTER_S_MAX)
    assert policy.delay_for(TaskError(retryable=False, retry_after_s=retry_after_s), failures) is None


def test_a_service_may_ask_for_a_longer_wait_than_the_cap() -> None:
    policy = RetryPolicy(cap_s=10)
    assert policy.delay_for(TaskError(retry_after_s=300), 1) == 300
    assert policy.delay_for(TaskError(retry_after_s=0.1), 1) == 0.5
    assert policy.delay_for(TaskError(retry_after_s=math.inf), 1) == RETRY_AFTER_S_MAX


def test_a_failure_without_an_error_may_be_retried() -> None:
    assert RetryPolicy().delay_for(None, 1) == 0.5


def test_the_policy_is_a_frozen_value() -> None:
    policy = RetryPolicy(max_retries=1)
    assert policy == RetryPolicy(max_retries=1)
    assert hash(policy) == hash(RetryPolicy(max_retries=1))
    with pytest.raises(ValidationError, match="frozen"):
        policy.max_retries = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "field", [{"max_retries": -1}, {"initial_s": -1.0}, {"multiplier": 0.5}, {"cap_s": math.inf}, {"jitter": 1.5}]
)
def test_senseless_settings_are_refused_by_name(field: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        RetryPolicy.model_validate(field)
