"""What a token allows on a client's connection: operation by operation, as routes are for requests."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from llama_deploy.control_plane.http.access.audit import Entry
from llama_deploy.control_plane.http.access.guard import ACCESS, CALLER, Access
from llama_deploy.control_plane.http.access.scopes import OPERATIONS
from llama_deploy.control_plane.http.access.tokens import ANYBODY, Caller
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages.frames import ClientOp, Forget, Submit


class _Named(msgspec.Struct):
    """What the audit log says of a submission."""

    task_id: str = ""


_named = msgspec.json.Decoder(_Named)


class Permitted:
    """Of the operations of a connection, those that its token allows; the others are answered with the reason.

    `scope` is the connection's, as the guard left it. Without a guard everything is allowed.
    """

    def __init__(self, scope: MutableMapping[str, Any], refuse: Callable[[int, LlamaDeployError], None]) -> None:
        self._caller: Caller = scope.get(CALLER, ANYBODY)
        self._access: Access | None = scope.get(ACCESS)
        self._refuse = refuse
        client = scope.get("client")
        self._peer: str = client[0] if client else ""

    def __call__(self, operations: Sequence[ClientOp]) -> Sequence[ClientOp]:
        audited = self._access is not None and self._access.audit.on
        if self._caller.token is None and not audited:
            return operations
        return [operation for operation in operations if self._allows(operation)]

    def _allows(self, operation: ClientOp) -> bool:
        if isinstance(operation, Forget):
            return True  # nothing comes of it, and refusing it would answer a request that is forgotten
        error = self._caller.refusal(OPERATIONS[type(operation)])
        if isinstance(operation, Submit):
            self._write(operation, "taken" if error is None else f"refused {error.code}")
        if error is not None:
            self._refuse(operation.request, error)
        return error is None

    def _write(self, operation: Submit, outcome: str) -> None:
        if self._access is None or not self._access.audit.on:
            return
        try:
            task_id = _named.decode(operation.definition).task_id
        except msgspec.DecodeError:
            task_id = ""  # it is refused for that where it is read
        self._access.audit.write(Entry(self._caller.name, "submit", task_id, self._peer, outcome))
