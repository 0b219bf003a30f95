"""Which scope each route asks for: the one table of it. A route that is not in it is refused where tokens are.

Whoever adds a route adds its line here; a test compares the table with the routes of the application. Paths are
written as the application writes them; `WS` is a WebSocket, `-` is open to everybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llama_deploy.messages.frames import Follow, Forget, Submit, Subscribe, Wait
from llama_deploy.types.access import Scope

ROUTES = """
-       GET     /healthz
-       GET     /readyz

read    GET     /
read    GET     /openapi.json
read    GET     /v1/status
read    GET     /v1/tasks
read    POST    /v1/tasks/lookup
read    GET     /v1/tasks/{task_id}
read    GET     /v1/tasks/{task_id}/result
read    GET     /v1/tasks/{task_id}/history
read    GET     /v1/tasks/{task_id}/stream
read    GET     /v1/tasks/{task_id}/graph
read    GET     /v1/tasks/{task_id}/ledgers/{name:path}
read    GET     /v1/sessions
read    GET     /v1/sessions/{session_id}
read    GET     /v1/sessions/{session_id}/state
read    GET     /v1/sessions/{session_id}/memory
read    GET     /v1/services
read    GET     /v1/services/{name}
read    GET     /v1/queues
read    GET     /v1/queues/{name}
read    GET     /v1/queues/{name}/waiting
read    GET     /v1/releases
read    GET     /v1/dead
read    GET     /v1/dead/{step_id}
read    GET     /v1/schedules
read    GET     /v1/schedules/{name}
read    GET     /v1/schedules/{name}/next
read    GET     /v1/artifacts/{hash}
read    GET     /v1/erasures
read    WS      /v1/connect/client

run     POST    /v1/tasks
run     POST    /v1/tasks/batch
run     POST    /v1/tasks/{task_id}/input
run     POST    /v1/tasks/{task_id}/cancel
run     POST    /v1/tasks/{task_id}/pause
run     POST    /v1/tasks/{task_id}/resume
run     POST    /v1/tasks/{task_id}/retry
run     POST    /v1/tasks/{task_id}/replay
run     POST    /v1/tasks/{task_id}/fork
run     POST    /v1/tasks/{task_id}/redrive
run     POST    /v1/dead/{step_id}/redrive
run     POST    /v1/sessions
run     DELETE  /v1/sessions/{session_id}/memory
run     POST    /v1/schedules/{name}/trigger
run     POST    /v1/artifacts
run     PUT     /v1/artifacts/{hash}

serve   WS      /v1/connect/instance

deploy  POST    /v1/tasks/{task_id}/migrate
deploy  POST    /v1/services/{name}/pause
deploy  POST    /v1/services/{name}/resume
deploy  PUT     /v1/services/{name}/limits
deploy  DELETE  /v1/services/{name}/limits
deploy  POST    /v1/services/{name}/instances/{instance_id}/drain
deploy  PUT     /v1/releases/{release}
deploy  DELETE  /v1/releases/{release}
deploy  POST    /v1/queues/{name}/pause
deploy  POST    /v1/queues/{name}/resume
deploy  PUT     /v1/schedules/{name}
deploy  DELETE  /v1/schedules/{name}
deploy  POST    /v1/schedules/{name}/pause
deploy  POST    /v1/schedules/{name}/resume

admin   WS      /v1/connect/control-plane

admin   POST    /v1/tasks/bulk
admin   DELETE  /v1/tasks/{task_id}
admin   GET     /v1/tasks/{task_id}/export
admin   GET     /v1/export
admin   POST    /v1/import
admin   GET     /v1/backup
admin   POST    /v1/dead/redrive
admin   POST    /v1/dead/purge
admin   DELETE  /v1/dead/{step_id}
admin   DELETE  /v1/sessions/{session_id}/data

read    GET     /v1/logs

read    GET     /queue_config
read    GET     /services
read    GET     /services/{name}
read    GET     /sessions
read    GET     /sessions/{session_id}
read    GET     /sessions/{session_id}/state
read    GET     /sessions/{session_id}/tasks
read    GET     /sessions/{session_id}/current_task
read    GET     /sessions/{session_id}/tasks/{task_id}/result
read    GET     /sessions/{session_id}/tasks/{task_id}/result_stream
read    GET     /status
read    GET     /status/
read    GET     /status/metrics
read    GET     /deployments
read    GET     /deployments/
read    GET     /deployments/{name}
read    GET     /deployments/{name}/tasks
read    GET     /deployments/{name}/tasks/{task_id}/results
read    GET     /deployments/{name}/tasks/{task_id}/events
read    GET     /deployments/{name}/sessions
read    GET     /deployments/{name}/sessions/{session_id}

run     POST    /process_message
run     POST    /sessions/create
run     POST    /sessions/{session_id}/state
run     POST    /sessions/{session_id}/tasks
run     POST    /sessions/{session_id}/tasks/{task_id}/send_event
run     POST    /deployments/{name}/tasks/run
run     POST    /deployments/{name}/tasks/create
run     POST    /deployments/{name}/tasks/{task_id}/events
run     POST    /deployments/{name}/sessions/create

serve   POST    /services/register
serve   POST    /services/deregister

deploy  POST    /deployments/create

admin   POST    /sessions/{session_id}/delete
admin   POST    /deployments/{name}/sessions/delete
"""

OPERATIONS: dict[type, Scope] = {
    Submit: Scope.RUN,
    Wait: Scope.READ,
    Subscribe: Scope.READ,
    Follow: Scope.READ,
    Forget: Scope.READ,
}
"""What each operation of a client's connection asks for, beyond what the connection itself does."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table."""

    scope: Scope | None
    """None: open to everybody."""
    method: str
    path: str


@dataclass(slots=True)
class _Node:
    """One place in the tree of paths; `{name}` stands under the empty text, `{name:path}` in `rest`."""

    following: dict[str, _Node] = field(default_factory=dict)
    ending: dict[str, Rule] = field(default_factory=dict)
    rest: dict[str, Rule] = field(default_factory=dict)


class ScopeTable:
    """Finds the rules of a request. Every rule that fits counts, so that no order of routes can let anybody in."""

    def __init__(self, table: str = ROUTES) -> None:
        self.rules = [_rule(line) for line in table.splitlines() if line.strip()]
        self._root = _Node()
        for rule in self.rules:
            self._add(rule)

    def _add(self, rule: Rule) -> None:
        node, *segments = self._root, *rule.path.split("/")[1:]
        for segment in segments:
            if segment.endswith(":path}"):
                node.rest[rule.method] = rule
                return
            node = node.following.setdefault("" if segment.startswith("{") else segment or "/", _Node())
        node.ending[rule.method] = rule

    def rules_of(self, method: str, path: str) -> list[Rule]:
        """The rules that fit, also where the path has one slash at its end too many or too few: the application
        redirects those. Empty for what no route of the table answers.
        """
        wanted = "GET" if method == "HEAD" else method
        found = self._matching(wanted, path)
        return found or self._matching(wanted, path[:-1] if path.endswith("/") else f"{path}/")

    def _matching(self, method: str, path: str) -> list[Rule]:
        nodes, found = [self._root], []
        segments = path.split("/")[1:]
        for index, segment in enumerate(segments):
            found += [node.rest[method] for node in nodes if method in node.rest and any(segments[index:])]
            names = (segment, "") if segment else ("/",)
            nodes = [node.following[name] for node in nodes for name in names if name in node.following]
        return found + [node.ending[method] for node in nodes if method in node.ending]


def _rule(line: str) -> Rule:
    scope, method, path = line.split()
    return Rule(None if scope == "-" else Scope(scope), method, path)
