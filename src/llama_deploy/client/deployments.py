"""What a client says to an API server: which deployments run, in which version, and what their processes print.

A deployment's own control plane is at `deployment_url`, for the client of a control plane.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from llama_deploy.client.http_calls import segment
from llama_deploy.connections.http_requests import HttpRequests
from llama_deploy.connections.problems import error_from_problem
from llama_deploy.errors import CannotReachError
from llama_deploy.runtime.credentials import Credentials, known_by

DEFAULT_URL = "http://127.0.0.1:4501"
DEPLOY_TIMEOUT_S = 1800.0
"""How long a request may take that fetches sources, builds environments and starts processes."""


def deployment_url(server: str, name: str) -> str:
    """The URL of a deployment's control plane, behind its API server."""
    return f"{server.rstrip('/')}/deployments/{segment(name)}"


class DeploymentsClient:
    """The deployments of the API server at `url`. Use it as an async context manager, or `close` it.

    `token` and `credentials` are those of `Client`.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, credentials: Credentials | None = None
    ) -> None:
        self.url = url.rstrip("/")
        known = known_by(token, credentials)
        tls = known.ssl_context() if self.url.startswith("https:") else None
        self._http = HttpRequests(self.url, credentials=known, tls=tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def control_plane_url(self, name: str) -> str:
        """Where the control plane of a deployment is reached: behind this server, or this server itself, if it is one.

        Raises `DeploymentNotFoundError` where it is the one of another deployment.
        """
        if await self.is_control_plane():
            await self._ask("GET", f"/deployments/{segment(name)}")
            return self.url
        return deployment_url(self.url, name)

    async def is_control_plane(self) -> bool:
        """Whether the server is the control plane of one deployment, and no API server."""
        return "api" in await self._ask("GET", "/")

    async def list_deployments(self) -> list[dict[str, Any]]:
        """Every deployment, by name."""
        return list((await self._ask("GET", "/v1/deployments"))["items"])

    async def get(self, name: str) -> dict[str, Any]:
        """One deployment. Raises `DeploymentNotFoundError`."""
        return await self._ask("GET", f"/v1/deployments/{segment(name)}")

    async def versions(self, name: str) -> list[dict[str, Any]]:
        """Its versions, the newest first."""
        return list((await self._ask("GET", f"/v1/deployments/{segment(name)}/versions"))["items"])

    async def deploy(
        self,
        file: bytes,
        *,
        file_name: str = "deployment.yml",
        archive: bytes | None = None,
        base_path: str | None = None,
        replace: bool = True,
        dry_run: bool = False,
        now: bool = False,
    ) -> dict[str, Any]:
        """Run a deployment file, in the place of what runs under its name if need be; returns when it is ready.

        `archive` has the files that it speaks of, `base_path` is the folder of them on the server. With `dry_run`
        nothing is changed, and the answer says what would be. Tasks finish on the version that they began with, for a
        while; with `now` their next steps go to this one. Raises what is wrong with any of it.
        """
        parts = {"config_file": (file_name, file)} | ({"archive": ("archive", archive)} if archive is not None else {})
        media, body = _form(parts)
        params: dict[str, Any] = {"replace": replace} | ({"base_path": base_path} if base_path is not None else {})
        params |= {name: True for name, wanted in (("dry_run", dry_run), ("now", now)) if wanted}
        return await self._ask("POST", "/v1/deployments", params=params, content=body, media=media)

    async def rollback(self, name: str, version: int | None = None, *, now: bool = False) -> dict[str, Any]:
        """Go back to an earlier version, by default the last one before the present that was seen to run.

        Tasks of the present one finish on it for a while; with `now` their next steps go to the earlier one.
        """
        return await self._change(name, "rollback", {"version": version} | ({"now": True} if now else {}))

    async def finish(self, name: str, version: int | None = None) -> dict[str, Any]:
        """Have tasks that finish on an earlier version, or on any, go on with the present one.

        Raises `VersionNotFoundError` for a version that finishes nothing.
        """
        return await self._change(name, "finish", {"version": version})

    async def scale(self, name: str, service: str, replicas: int | None) -> dict[str, Any]:
        """Have so many processes of a service; `None`: as many as its deployment file says."""
        return await self._change(name, "scale", {"service": service, "replicas": replicas})

    async def stop(self, name: str) -> dict[str, Any]:
        """End its processes; what is unfinished is kept."""
        return await self._change(name, "stop", {})

    async def start(self, name: str) -> dict[str, Any]:
        """Start it again, or what of it has failed."""
        return await self._change(name, "start", {})

    async def delete(self, name: str) -> dict[str, Any]:
        """End it after its processes have drained, and remove all that it has kept."""
        return await self._ask("DELETE", f"/v1/deployments/{segment(name)}")

    async def events(self, name: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[dict[str, Any]]:
        """What happened to it after an event, and with `follow` what is to come."""
        path = f"/v1/deployments/{segment(name)}/events?after={after}&follow={str(follow).lower()}"
        async for line in self._lines(path):
            yield json.loads(line)

    async def logs(self, name: str, *, last: int = 200, follow: bool = False) -> AsyncIterator[str]:
        """What its processes print, line by line: the `last` lines, and with `follow` those to come."""
        async for line in self._lines(f"/v1/deployments/{segment(name)}/logs?last={last}&follow={str(follow).lower()}"):
            yield line

    async def _change(self, name: str, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        content = json.dumps(body).encode()
        return await self._ask(
            "POST", f"/v1/deployments/{segment(name)}/{what}", content=content, media="application/json"
        )

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        media: str | None = None,
    ) -> dict[str, Any]:
        try:
            status, _, body = await self._http.exchange(
                method,
                path,
                params=params,
                headers={"content-type": media} if media is not None else None,
                content=content,
                timeout_s=DEPLOY_TIMEOUT_S,
            )
        except CannotReachError as error:
            raise _no_server(self.url, error) from error
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if status >= HTTPStatus.BAD_REQUEST or not isinstance(document, dict):
            raise error_from_problem(document, status=status, address=self.url)
        return document

    async def _lines(self, path: str) -> AsyncIterator[str]:
        rest = b""
        try:
            async for piece in self._http.download(path, silent_s=math.inf):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line.decode()
        except CannotReachError as error:
            raise _no_server(self.url, error) from error


def _no_server(url: str, error: CannotReachError) -> CannotReachError:
    return CannotReachError(
        f"cannot reach the API server at {url}",
        why=error.why,
        fix="llamactl apiserver                 start one on this machine\n"
        "llamactl -s URL deployments list   or name another",
        address=url,
    )


def _form(parts: Mapping[str, tuple[str, bytes]]) -> tuple[str, bytes]:
    """A multipart form of files: its media type and its bytes."""
    boundary = secrets.token_hex(16)
    body = b""
    for name, (file_name, data) in parts.items():
        quoted = file_name.replace("\\", "_").replace('"', "_").replace("\r", "_").replace("\n", "_")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{quoted}"\r\n'
        body += head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()
