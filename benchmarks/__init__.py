"""What the system costs and how fast it is, measured beside others in the same run.

Run it as `python -m benchmarks` from the repository's root; `benchmarks/README.md` explains every figure. Nothing here
is part of the installed package, and nothing in CI depends on a figure from here.
"""
