"""Wrappers: the best of three tries within a budget and a time, with a fallback, and asked twice, worked out once."""

from __future__ import annotations

from show import show

from llama_deploy import NonRetryableError, RetryPolicy, service
from llama_deploy.orchestrators import Budget, Cache, Fallback, Retry, Sequence, Timeout, Vote

answers = iter(["42", "41", "42", "43"])


@service
def guess(question: str) -> str:
    """Not always the same."""
    del question
    return next(answers)


@service
def oracle(question: str) -> str:
    """Never there."""
    raise NonRetryableError(f"the oracle sleeps; it would know: {question}")


careful = Retry(Vote("guess", times=3), RetryPolicy(max_retries=1, initial_s=0.05))
policy = Budget(Timeout(Sequence(Cache(Fallback("oracle", careful))), seconds=30), steps=8, tokens=1000)
show(policy, [guess, oracle], "What is it all about?")
