"""What everything else takes its time and its crashes from: the clock, the failpoints; and work done in rounds."""

from llama_deploy.runtime.clock import LATE_S, PUT_OFF_MAX, Clock, SilenceTimer, SystemClock, Timer, put_off_s
from llama_deploy.runtime.failpoints import FAILPOINTS, failpoint
from llama_deploy.runtime.rounds import Rounds

__all__ = [
    "FAILPOINTS",
    "LATE_S",
    "PUT_OFF_MAX",
    "Clock",
    "Rounds",
    "SilenceTimer",
    "SystemClock",
    "Timer",
    "failpoint",
    "put_off_s",
]
