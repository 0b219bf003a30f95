"""When a failed step is tried again, and how long to wait before it.

The policy is a frozen value and its methods are pure: they know neither the time of day nor chance. Whoever schedules
an attempt adds both, the clock and the jitter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from llama_deploy.types.core import TaskError

RETRY_AFTER_S_MAX = 86_400.0
"""The longest wait, in seconds, that a service may ask for with `retry_after_s`; a longer one is cut to this."""


def asked_for_s(error: TaskError | None) -> float:
    """The seconds that a service has asked for with `retry_after_s`, up to `RETRY_AFTER_S_MAX`; 0 where it has not."""
    asked_s = error.retry_after_s if error is not None else None
    return 0.0 if asked_s is None or not asked_s > 0 else min(asked_s, RETRY_AFTER_S_MAX)


class RetryPolicy(BaseModel):
    """Exponential backoff with a cap: `initial_s * multiplier ** (failures - 1)` seconds, at most `cap_s`."""

    model_config = ConfigDict(extra="ignore", defer_build=True, frozen=True)

    max_retries: int = Field(default=3, ge=0, strict=True)
    """How often a step is tried again after its first attempt; 0 means never."""
    initial_s: float = Field(default=0.5, ge=0, allow_inf_nan=False, strict=True)
    """Seconds to wait after the first failure."""
    multiplier: float = Field(default=2.0, ge=1, allow_inf_nan=False, strict=True)
    """Each further failure waits this many times longer than the one before."""
    cap_s: float = Field(default=60.0, ge=0, allow_inf_nan=False, strict=True)
    """The longest backoff in seconds. What a service asks for with `retry_after_s` may be longer."""
    jitter: float = Field(default=0.2, ge=0, le=1, strict=True)
    """Share of the delay by which the scheduler spreads it at random, so that many failures do not return as one."""
    non_retryable: tuple[str, ...] = ()
    """Names of exception classes (`ValueError`, `openai.AuthenticationError`'s last part) and codes of errors (`LD505`)
    after which no attempt is made again."""
    when_exhausted: Literal["fail", "pause"] = "fail"
    """What follows the last failure: the step fails, or its task pauses until a person has it go on."""

    def next_delay(self, failures: int) -> float:
        """Seconds to wait after the `failures`-th failure, counted from 1, without jitter."""
        if failures < 1:
            return 0.0
        try:
            return min(self.cap_s, self.initial_s * self.multiplier ** (failures - 1))
        except OverflowError:
            return self.cap_s if self.initial_s else 0.0

    def delay_for(self, error: TaskError | None, failures: int) -> float | None:
        """Seconds to wait before the next attempt of a step that failed `failures` times now; None to give up.

        Gives up when `error` says that it is not retryable, and after `max_retries` retries. A service's
        `retry_after_s` is the least that is waited, up to `RETRY_AFTER_S_MAX`. No error counts as a retryable one.
        """
        if failures > self.max_retries or (error is not None and self.is_final(error)):
            return None
        return max(self.next_delay(failures), asked_for_s(error))

    def is_final(self, error: TaskError) -> bool:
        """Whether no attempt follows `error`, by its own word or by this policy's."""
        return not error.retryable or error.type in self.non_retryable or error.code in self.non_retryable
