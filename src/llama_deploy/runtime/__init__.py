"""The clock and the failpoints that everything else takes its time and its crashes from."""

from llama_deploy.runtime.clock import Clock, SystemClock, Timer
from llama_deploy.runtime.failpoints import FAILPOINTS, failpoint

__all__ = ["FAILPOINTS", "Clock", "SystemClock", "Timer", "failpoint"]
