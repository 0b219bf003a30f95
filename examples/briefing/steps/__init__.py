"""The five steps of the briefing: read, analyse, summarise, check, write.

Each is a plain function in a module of its own name, takes and returns the frozen data of `steps.documents`, keeps no
state and touches nothing but its arguments (`read` a file, `summarise` a model if one is configured). So each can be
served from a process of its own, be tried again after a crash, and be called from a test.
"""
