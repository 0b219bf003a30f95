"""The parts of the published system, for programs that put them together by hand.

`queues` are what the parts have in common, `control_plane` and `services` are the parts, `consumers` hear of messages,
`tools` are services in the hands of agents. All of it runs on the engine; nothing is decided here.
"""
