"""Every route has its scope, and each scope opens its routes and no other ones."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute

from llama_deploy.apiserver.deployments.http.app import build_app as api_server_app
from llama_deploy.apiserver.deployments.http.scopes import SCOPES
from llama_deploy.apiserver.deployments.server import DeploymentServer
from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.http.access.guard import Access, Guard
from llama_deploy.control_plane.http.access.scopes import OPERATIONS, Rule, ScopeTable
from llama_deploy.control_plane.http.app import ROUTERS, build_app
from llama_deploy.messages.frames import ClientOp
from llama_deploy.state_stores import MemoryStore
from llama_deploy.types.access import AccessSettings, Scope, Token, digest_of, with_implied

TABLE = ScopeTable()
TEXTS = {scope: f"token-of-{scope.value}-0123456789" for scope in Scope}
TOKENS = tuple(
    Token(name=scope.value, digest=digest_of(text), scopes=with_implied([scope])) for scope, text in TEXTS.items()
)


def routes() -> set[tuple[str, str]]:
    """Method and path of everything that the application answers."""
    found = {("GET", "/openapi.json")}
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIWebSocketRoute):
                found.add(("WS", route.path))
            else:
                assert isinstance(route, APIRoute), route
                found |= {(method, route.path) for method in route.methods or () if method != "HEAD"}
    return found


def test_every_route_is_in_the_table_and_no_other_one() -> None:
    assert {(rule.method, rule.path) for rule in TABLE.rules} == routes()
    assert len(TABLE.rules) == len(routes())


def test_every_route_of_an_api_server_is_in_its_table(tmp_path: Path) -> None:
    app = api_server_app(DeploymentServer(tmp_path))
    found = {("GET", "/openapi.json")}
    for route in app.routes:
        if isinstance(route, APIRoute) and not route.path.endswith("{path:path}"):
            found |= {(method, route.path) for method in route.methods or ()}
    assert len(found) > 20
    rules = {(rule.method, rule.path) for rule in SCOPES.rules}
    assert found <= rules
    passed_on = {(rule.method, rule.path) for rule in rules_below()}
    pages = {(method, path) for method, path in rules if path.startswith("/deployments/{name}/ui")}
    assert rules - found - pages <= passed_on


def rules_below() -> list[Rule]:
    """What a control plane answers, below a deployment."""
    place = "/deployments/{name}"
    return [
        replace(rule, path=rule.path if rule.path.startswith(f"{place}/") else place + rule.path)
        for rule in TABLE.rules
    ]


def test_below_a_deployment_its_control_plane_s_scopes_hold() -> None:
    for rule in rules_below():
        assert rule.scope in {found.scope for found in SCOPES.rules_of(rule.method, filled(rule.path))}
    assert SCOPES.rules_of("POST", "/deployments/x/unknown") == []


def test_nothing_is_mounted_beside_the_routers() -> None:
    app = build_app(ControlPlane(store=MemoryStore())).app
    assert [route.path for route in app.routes if hasattr(route, "path")][:1] == ["/openapi.json"]
    known = len(ROUTERS) + 1, len(routes()) + 1  # newer versions of the framework keep routers apart
    assert len(app.routes) in range(*sorted(known)) or len(app.routes) in known


def test_every_operation_of_a_client_has_a_scope() -> None:
    assert set(OPERATIONS) == set(ClientOp.__args__)


async def ask(guard: Guard, method: str, path: str, token: str | None) -> int:
    """The status of one request, or of the handshake of a connection (101: it was let in)."""
    headers = [(b"host", b"127.0.0.1")]
    if token is not None:
        headers.append((b"authorization", b"Bearer " + token.encode()))
    kind = "websocket" if method == "WS" else "http"
    scope = {"type": kind, "path": path, "headers": headers, "client": ("127.0.0.1", 1), "method": method}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read of what is refused")

    await guard(scope, receive, send)
    return int(sent[0]["status"])


async def let_in(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers everything."""
    del receive
    kind = "http" if scope["type"] == "http" else "websocket.http"
    await send({"type": f"{kind}.response.start", "status": 204, "headers": []})


def filled(path: str) -> str:
    """A path with something in the place of every name."""
    return re.sub(r"\{[^}]+\}", "x", path.replace("{name:path}", "a/b"))


GUARD = Guard(let_in, Access(AccessSettings(tokens=TOKENS)))


@pytest.mark.parametrize("token", [None, "wrong-token-0123456789", *Scope])
@pytest.mark.parametrize("rule", TABLE.rules, ids=lambda rule: f"{rule.method} {rule.path}")
async def test_a_route_is_open_to_its_scope_alone(rule: Rule, token: Scope | str | None) -> None:
    text = TEXTS[token] if isinstance(token, Scope) else token
    status = await ask(GUARD, rule.method, filled(rule.path), text)
    if rule.scope is None:
        assert status == 204
    elif not isinstance(token, Scope):
        assert status == 401
    else:
        assert status == (204 if rule.scope in with_implied([token]) else 403)


@pytest.mark.parametrize("path", ["/v1/tasks/", "//v1/tasks", "/v1/tasks/x/unknown", "/v1", "/v1/TASKS", "/docs"])
async def test_what_is_no_route_lets_nobody_past(path: str) -> None:
    assert await ask(GUARD, "GET", path, None) == 401
    expected = 204 if path == "/v1/tasks/" else 404  # the application redirects that one
    assert await ask(GUARD, "GET", path, TEXTS[Scope.ADMIN]) == expected


async def test_an_unknown_method_is_no_way_in() -> None:
    for method in ("PATCH", "TRACE", "OPTIONS", "POST"):
        assert await ask(GUARD, method, "/v1/tasks/x", None) == 401
        assert await ask(GUARD, method, "/v1/tasks/x", TEXTS[Scope.READ]) == 404
    assert await ask(GUARD, "HEAD", "/v1/tasks/x", TEXTS[Scope.READ]) == 204


def test_where_two_lines_fit_both_count() -> None:
    table = ScopeTable("read GET /a/{x}\nadmin GET /a/b\nrun GET /a/{rest:path}\n")
    assert {rule.scope for rule in table.rules_of("GET", "/a/b")} == {Scope.READ, Scope.ADMIN, Scope.RUN}
    assert {rule.scope for rule in table.rules_of("GET", "/a/c")} == {Scope.READ, Scope.RUN}
    assert table.rules_of("GET", "/a//") == []


def test_the_catch_all_of_a_path_takes_what_the_framework_takes() -> None:
    assert TABLE.rules_of("GET", "/v1/tasks/t/ledgers/a/b/c")
    assert TABLE.rules_of("GET", "/v1/tasks/t/ledgers/") == []
