"""Many deployments on one server: each with its own processes, environments, control plane and data.

`records` is what the server remembers, `versions` makes what a version runs from, `running` sees to it that what is
recorded is what runs, `server` is what people ask, and `http` how they ask it.
"""
