"""Deterministic simulation: the real engine, runner, link and client under a simulated clock, network and disk.

A seed decides everything: the programs, the faults, the order of what happens at the same time. The same seed gives
the same run, to the last callback. `python -m llama_deploy.testing.simulation` runs as many as wanted.
"""

from llama_deploy.testing.simulation.faults import KINDS
from llama_deploy.testing.simulation.loop import Process, ProcessClock, SimulatedLoop, Stuck
from llama_deploy.testing.simulation.run import Run, run_seed

__all__ = ["KINDS", "Process", "ProcessClock", "Run", "SimulatedLoop", "Stuck", "run_seed"]
