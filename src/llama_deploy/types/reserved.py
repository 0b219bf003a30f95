"""Names that belong to the control plane itself: what is sent to them is answered by it, and by no service."""

TIMER_SERVICE = "__timer__"
"""A message to it, with `delay_s`, is answered when that time is over."""
PERSON_SERVICE = "__person__"
"""A message to it waits for a person's input, which is its answer. Its data are the prompt."""
TAKE_BACK_SERVICE = "__take_back__"
"""A message to it takes back the open steps whose tag is its `tag`, or begins with it where that ends in `/`."""
STREAM_SERVICE = "__stream__"
"""A message to it, with the action `TASK_STREAM`, appends `data["event"]` to the task's stream."""
DEADLINE_SERVICE = "__deadline__"
"""Whom the delivery that stands for a task's deadline is for; it is never sent."""
ANSWERED_HERE = frozenset({TIMER_SERVICE, PERSON_SERVICE})
"""The control plane answers them itself; no instance may register under such a name."""
