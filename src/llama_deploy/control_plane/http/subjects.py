"""What a request is about: the session whose leader answers it, found in its path, its query or its body.

One table for all routes. Most say it in their path; a submission says it in its body; what any control plane answers
from the store is about nothing. Nothing is checked here: what makes no sense is left to the route, which says why.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import msgspec

from llama_deploy.control_plane.routing import Routing

Match = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The parts of a request that say what it is about."""

    method: str
    path: str
    """Decoded, as routes read it."""
    query: bytes
    headers: Mapping[bytes, bytes]
    body: Callable[[], Awaitable[bytes]]
    """Reads the body; it is read once."""
    replace: Callable[[bytes], None]
    """Puts another body in the place of what was sent."""

    async def fields(self) -> Mapping[str, Any]:
        """The body's fields; none where it is no JSON object."""
        try:
            found = msgspec.json.decode(await self.body())
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    async def give_id(self, task_id: str) -> None:
        """Say which id the task gets that is to be made of the body, so that asking twice makes no second one."""
        with suppress(ValueError, RecursionError):  # what is no JSON object is refused by the route
            fields = msgspec.json.decode(await self.body() or b"{}", type=dict[str, msgspec.Raw])
            self.replace(msgspec.json.encode({**fields, "task_id": task_id}))

    def parameter(self, name: str) -> str | None:
        """A parameter of the query; the last one, as FastAPI reads it."""
        found = parse_qs(self.query.decode("latin-1"), keep_blank_values=True).get(name)
        return found[-1] if found else None


Find = Callable[["Subjects", Asked, Match], Awaitable[str | None]]


class Subjects:
    """Finds the session of a request, with the help of what is recorded."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def session_of(self, asked: Asked) -> str | None:
        """The session whose leader answers; `None` where this control plane does as well as any other.

        A task that nobody knows is nobody's: the answer to that is the same everywhere. A task that is to be made, and
        of which nothing is said, is given an id, so that asking once more makes no second one. Raises
        `StoreUnavailableError`.
        """
        found = rule_of(asked.method, asked.path)
        if found is None:
            return None
        find, match = found
        return await find(self, asked, match)

    async def _of_new(self, asked: Asked, said: Mapping[str, Any], key: object = None) -> str:
        """The session of a task that is to be made: its own, that of the task that was made under its key, or its id.

        Where nothing says which task it is, it gets an id of this control plane.
        """
        session_id, task_id = said.get("session_id"), said.get("task_id")
        key = key or said.get("idempotency_key")
        if not isinstance(task_id, str):
            task_id = self._routing.own_id()
            if not key:
                await asked.give_id(task_id)
        if isinstance(session_id, str):
            return session_id
        known = await self._routing.session_under(key) if key and isinstance(key, str) else None
        return known or task_id

    # --- how each kind of request says it ---------------------------------------------------------------------------

    async def nothing(self, asked: Asked, match: Match) -> str | None:
        """Every control plane answers this from the store, or about itself."""
        del asked, match
        return None

    async def the_task(self, asked: Asked, match: Match) -> str | None:
        """A task is named."""
        del asked
        return await self._routing.session_of(match["task_id"])

    async def the_step(self, asked: Asked, match: Match) -> str | None:
        """A step is named, whose id begins with that of its task."""
        del asked
        return await self._routing.session_of(match["step_id"].rpartition(":")[0])

    async def the_session(self, asked: Asked, match: Match) -> str | None:
        """A session is named."""
        del asked
        return match["session_id"]

    async def the_session_in_query(self, asked: Asked, match: Match) -> str | None:
        """A session is named in the query."""
        del match
        return asked.parameter("session_id")

    async def the_new_session(self, asked: Asked, match: Match) -> str | None:
        """A session is to be made, under an id in the body or one of this control plane."""
        del match
        session_id = (await asked.fields()).get("session_id")
        return session_id if isinstance(session_id, str) else self._routing.own_id()

    async def the_submission(self, asked: Asked, match: Match) -> str | None:
        """A task is to be made of the body."""
        del match
        key = asked.headers.get(b"idempotency-key")
        return await self._of_new(asked, await asked.fields(), None if key is None else key.decode("latin-1"))

    async def the_published_submission(self, asked: Asked, match: Match) -> str | None:
        """A task of the published form; its session stands in the path, in the query, or in the body."""
        said = dict(await asked.fields())
        session_id = match.get("session_id") or asked.parameter("session_id")
        return await self._of_new(asked, {**said, "session_id": session_id} if session_id else said)

    async def the_message(self, asked: Asked, match: Match) -> str | None:
        """A task in a message of the published form."""
        del match
        said = await asked.fields()
        data = said.get("data")
        task = data.get("task", data) if isinstance(data, dict) else None
        if not isinstance(task, dict):
            return None
        if not isinstance(task.get("task_id"), str):
            task["task_id"] = self._routing.own_id()
            asked.replace(msgspec.json.encode(said))
        return await self._of_new(asked, task)

    async def the_created(self, asked: Asked, match: Match) -> str | None:
        """A task of the published form that gets a session of its own where none is named."""
        del match
        session_id = asked.parameter("session_id") or (await asked.fields()).get("session_id")
        return session_id if isinstance(session_id, str) else self._routing.own_id()

    async def the_next_life(self, asked: Asked, match: Match) -> str | None:
        """A task is to be made of an earlier one: in its session, or under an id that is given, or beside it."""
        before = await self._routing.session_of(match["task_id"])
        if before is None:
            return None
        said = await asked.fields()
        task_id, key = said.get("task_id"), said.get("idempotency_key")
        if not isinstance(task_id, str) and not key:
            await asked.give_id(self._routing.id_beside(before))
        if before != match["task_id"]:
            return before
        known = await self._routing.session_under(key) if key and isinstance(key, str) else None
        return known or (task_id if isinstance(task_id, str) else before)

    async def what_there_is_once(self, asked: Asked, match: Match) -> str | None:
        """One control plane has it for all of them."""
        del asked, match
        return self._routing.of_all


def may_repeat(method: str, path: str) -> bool:
    """Whether a request may be made again that may have been carried out: it reads, sets, or names what it makes."""
    found = rule_of(method, path)
    if method in ("GET", "HEAD", "PUT") or found is None:
        return method in ("GET", "HEAD", "PUT")
    return found[0] in _NAMED or path.rpartition("/")[2] in _HARMLESS


_NAMED = frozenset(
    {
        Subjects.the_submission,
        Subjects.the_published_submission,
        Subjects.the_message,
        Subjects.the_next_life,
        Subjects.the_new_session,
    }
)
"""What is made has an id or a key by now, or nobody minds one more."""
_HARMLESS = frozenset({"cancel", "pause", "resume", "migrate", "redrive"})


def rule_of(method: str, path: str) -> tuple[Find, Match] | None:
    """How a request says what it is about, and the names in its path; `None` for a path that is not in the table."""
    for methods, pattern, find in _RULES:
        if methods is None or method in methods:
            match = pattern.fullmatch(path)
            if match is not None:
                return find, match.groupdict()
    return None


def _rule(methods: str, template: str, find: Find) -> tuple[frozenset[str] | None, re.Pattern[str], Find]:
    """`{name}` stands for what is between two slashes, `*` for anything, nothing included."""
    pattern = re.escape(template).replace(r"\*", ".*")
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", pattern)
    return None if methods == "*" else frozenset(methods.split()), re.compile(pattern, re.DOTALL), find


_RULES = (
    _rule("POST", "/v1/tasks", Subjects.the_submission),
    _rule("*", "/v1/tasks", Subjects.nothing),
    _rule("POST", "/v1/tasks/batch", Subjects.nothing),
    _rule("POST", "/v1/tasks/bulk", Subjects.nothing),
    _rule("POST", "/v1/tasks/lookup", Subjects.nothing),
    _rule("POST", "/v1/tasks/{task_id}/retry", Subjects.the_next_life),
    _rule("POST", "/v1/tasks/{task_id}/replay", Subjects.the_next_life),
    _rule("POST", "/v1/tasks/{task_id}/fork", Subjects.the_next_life),
    _rule("*", "/v1/tasks/{task_id}", Subjects.the_task),
    _rule("*", "/v1/tasks/{task_id}/*", Subjects.the_task),
    _rule("POST", "/v1/sessions", Subjects.the_new_session),
    _rule("*", "/v1/sessions", Subjects.nothing),
    _rule("*", "/v1/sessions/{session_id}", Subjects.the_session),
    _rule("*", "/v1/sessions/{session_id}/*", Subjects.the_session),
    _rule("*", "/v1/dead", Subjects.nothing),
    _rule("POST", "/v1/dead/redrive", Subjects.nothing),
    _rule("POST", "/v1/dead/purge", Subjects.nothing),
    _rule("*", "/v1/dead/{step_id}", Subjects.the_step),
    _rule("*", "/v1/dead/{step_id}/*", Subjects.the_step),
    _rule("*", "/v1/schedules", Subjects.what_there_is_once),
    _rule("*", "/v1/schedules/*", Subjects.what_there_is_once),
    _rule("*", "/v1/releases", Subjects.what_there_is_once),
    _rule("*", "/v1/releases/*", Subjects.what_there_is_once),
    *(
        _rule("*", f"/v1/{what}*", Subjects.nothing)
        for what in (
            *("services", "queues", "status", "backup", "erasures", "export", "import", "artifacts", "connect/"),
            "logs",  # of the one that is asked
        )
    ),
    *(_rule("*", path, Subjects.nothing) for path in ("/", "/healthz", "/readyz", "/openapi.json", "/queue_config")),
    _rule("POST", "/process_message", Subjects.the_message),
    _rule("*", "/services*", Subjects.nothing),
    _rule("*", "/sessions", Subjects.nothing),
    _rule("POST", "/sessions/create", Subjects.the_new_session),
    _rule("POST", "/sessions/{session_id}/tasks", Subjects.the_published_submission),
    _rule("*", "/sessions/{session_id}/tasks/{task_id}/*", Subjects.the_task),
    _rule("*", "/sessions/{session_id}", Subjects.the_session),
    _rule("*", "/sessions/{session_id}/*", Subjects.the_session),
    _rule("*", "/status*", Subjects.nothing),
    _rule("*", "/deployments", Subjects.nothing),
    _rule("*", "/deployments/", Subjects.nothing),
    _rule("*", "/deployments/{name}", Subjects.nothing),
    _rule("POST", "/deployments/{name}/tasks/run", Subjects.the_published_submission),
    _rule("POST", "/deployments/{name}/tasks/create", Subjects.the_created),
    _rule("*", "/deployments/{name}/tasks/{task_id}/*", Subjects.the_task),
    _rule("*", "/deployments/{name}/tasks", Subjects.nothing),
    _rule("POST", "/deployments/{name}/sessions/create", Subjects.the_new_session),
    _rule("POST", "/deployments/{name}/sessions/delete", Subjects.the_session_in_query),
    _rule("*", "/deployments/{name}/sessions/{session_id}", Subjects.the_session),
    _rule("*", "/deployments/{name}/sessions", Subjects.nothing),
)
