"""The systems that are measured beside ours, each with its own requirements, workers and client.

Every module here runs in that peer's environment and not in the project's; `benchmarks.systems.peers` starts them.
"""
