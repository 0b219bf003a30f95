"""One end of the way to a control plane: what clients stand on, and control planes that pass requests on to each other.

The modules are imported by name; nothing here is for users.
"""
