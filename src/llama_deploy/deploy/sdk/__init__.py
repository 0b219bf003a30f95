"""The three parts of the published client: `core`, `apiserver`, `sync`, with the names that its documents use.

`Client` makes them where they are first asked for. What they ask goes over the published routes and our connection.
"""
