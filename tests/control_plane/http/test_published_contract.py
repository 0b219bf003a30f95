"""Every published route with its answers: the status, the form of the body, and what is refused how.

What the answers mean is tested in `test_published_core.py` and `test_published_server.py`; here each line of the
published contract is asked once, with both words for the service of a task.
"""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from pydantic import BaseModel
from tests.control_plane.http.conftest import Served

from llama_deploy.control_plane.http.access.scopes import ROUTES
from llama_deploy.types import SessionDefinition, TaskDefinition, TaskResult

TASK = {"input": '{"text": "a"}', "agent_id": "shout", "task_id": "t"}
EVENT = {"service_id": "gate", "event_obj_str": "{}"}
DEFINITION = {"service_name": "away", "description": "d", "prompt": [], "host": "h", "port": 1}
D = "/deployments/default"
S = "/sessions/s"

LINES: list[tuple[str, str, Any, int, Any]] = [
    ("GET", "/", None, 200, dict),
    ("POST", "/process_message", {"action": "new_task", "data": {"task": TASK, "state": {}}}, 200, None),
    ("POST", "/process_message", {"action": "completed_task"}, 400, "LD241"),
    ("GET", "/queue_config", None, 200, {"SimpleMessageQueueConfig": {"host": "test", "port": None}}),
    ("POST", "/services/register", DEFINITION, 200, None),
    ("POST", "/services/register", {}, 400, "LD201"),
    ("POST", "/services/deregister?service_name=shout", None, 200, None),
    ("GET", "/services", None, 200, dict),
    ("GET", "/services/shout", None, 200, dict),
    ("GET", "/services/nobody", None, 404, "LD211"),
    ("POST", "/sessions/create", None, 200, str),
    ("GET", "/sessions", None, 200, dict),
    ("GET", S, None, 200, SessionDefinition),
    ("GET", "/sessions/x", None, 404, "LD204"),
    ("POST", f"{S}/delete", None, 200, None),
    ("POST", "/sessions/x/delete", None, 404, "LD204"),
    ("POST", f"{S}/tasks", TASK, 200, "t"),
    ("POST", f"{S}/tasks", {"input": '{"text": "a"}', "service_id": "shout", "task_id": "u"}, 200, "u"),
    ("POST", "/sessions/x/tasks", TASK, 404, "LD204"),
    ("POST", f"{S}/tasks", {"task_id": "t"}, 400, "LD201"),
    ("POST", f"{S}/tasks", {**TASK, "service_id": "echo"}, 400, "LD201"),
    ("GET", f"{S}/tasks", None, 200, [TaskDefinition]),
    ("GET", f"{S}/current_task", None, 200, TaskDefinition),
    ("GET", "/sessions/empty/current_task", None, 200, None),
    ("GET", f"{S}/tasks/told/result", None, 200, TaskResult),
    ("GET", f"{S}/tasks/x/result", None, 200, None),
    ("GET", "/sessions/x/tasks/told/result", None, 404, "LD204"),
    ("GET", f"{S}/tasks/told/result_stream", None, 200, b'{"n":0}\n{"n":1}\n'),
    ("GET", f"{S}/tasks/x/result_stream", None, 404, "LD203"),
    ("GET", f"{S}/state", None, 200, dict),
    ("POST", f"{S}/state", {"a": 1}, 200, None),
    ("GET", "/sessions/x/state", None, 404, "LD204"),
    ("POST", f"{S}/tasks/told/send_event", EVENT, 409, "LD206"),
    ("POST", f"{S}/tasks/x/send_event", EVENT, 404, "LD203"),
    ("GET", "/status/", None, 200, {"status": "Healthy", "max_deployments": 1, "deployments": ["default"]}),
    ("GET", "/status/metrics", None, 200, "text/plain"),
    ("GET", "/deployments/", None, 200, ["default"]),
    ("GET", D, None, 200, {"name": "default"}),
    ("GET", "/deployments/x", None, 404, "LD240"),
    ("POST", f"{D}/tasks/run", TASK, 200, "A"),
    ("POST", f"{D}/tasks/run?session_id=s", TASK, 200, "A"),
    ("POST", f"{D}/tasks/create", TASK, 200, TaskDefinition),
    ("GET", f"{D}/tasks", None, 200, [TaskDefinition]),
    ("GET", f"{D}/tasks/told/results?session_id=s", None, 200, TaskResult),
    ("GET", f"{D}/tasks/x/results?session_id=s", None, 404, "LD203"),
    ("GET", f"{D}/tasks/told/events?session_id=s", None, 200, b'{"n":0}\n{"n":1}\n'),
    ("POST", f"{D}/tasks/told/events?session_id=s", EVENT, 409, "LD206"),
    ("GET", f"{D}/sessions", None, 200, [SessionDefinition]),
    ("GET", f"{D}/sessions/s", None, 200, SessionDefinition),
    ("GET", f"{D}/sessions/x", None, 404, "LD204"),
    ("POST", f"{D}/sessions/create", None, 200, SessionDefinition),
    ("POST", f"{D}/sessions/delete?session_id=s", None, 200, None),
    ("POST", f"{D}/sessions/delete?session_id=x", None, 404, "LD204"),
]
"""What is asked, and what comes: a value, a type, a model (in a list), the lines of a stream, the code of a refusal."""


@pytest.fixture
async def asked(http: httpx2.AsyncClient, served: Served) -> httpx2.AsyncClient:
    """A control plane with a session `s` in which the task `told` has streamed two events, and an empty one."""
    for name in ("s", "empty"):
        await served.deployment.client.create_session(name)
    await served.deployment.client.run("tell", input={"events": 2}, session_id="s", task_id="told")
    return http


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line[0]} {line[1]} {line[2]} {line[3]}")
async def test_a_route_answers_as_published(asked: httpx2.AsyncClient, line: tuple[str, str, Any, int, Any]) -> None:
    method, path, body, status, wanted = line
    answer = await asked.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    if isinstance(wanted, bytes):
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.content == wanted
        return
    if wanted == "text/plain":
        assert answer.headers["content-type"].startswith(wanted)
        return
    decoded = answer.json()
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert decoded["code"] == wanted
        assert decoded["detail"]  # what published clients show
    elif wanted in ([TaskDefinition], [SessionDefinition]):
        assert [wanted[0].model_validate(one) for one in decoded]
    elif isinstance(wanted, type) and issubclass(wanted, BaseModel):
        assert set(wanted.model_validate(decoded).model_dump()) <= decoded.keys()
    else:
        assert isinstance(decoded, wanted) if isinstance(wanted, type) else decoded == wanted


def test_each_of_these_routes_is_asked_for_a_scope() -> None:
    """With tokens nothing is reached that no line of the table of scopes lets anybody reach."""
    from llama_deploy.control_plane.http.access.scopes import ScopeTable

    table = ScopeTable(ROUTES)
    assert [path for method, path, *_ in LINES if not table.rules_of(method, path.partition("?")[0])] == []
