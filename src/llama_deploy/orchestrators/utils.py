"""The keys under which a session's state holds what belongs to one task."""


def get_result_key(task_id: str) -> str:
    """The key of the task's result."""
    return f"result_{task_id}"


def get_stream_key(task_id: str) -> str:
    """The key of the task's stream."""
    return f"stream_{task_id}"
