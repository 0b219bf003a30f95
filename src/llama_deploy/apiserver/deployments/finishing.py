"""Earlier versions of a deployment that still finish the tasks which began with them.

Which tasks those are, and until when they may take, the deployment's control plane knows and keeps (its releases, one
for each version): it is told which version is current, and asked what is left. Here is looked after the other half: a
version's processes stay until nothing of it is left, or its time is over, and are started again with the API server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from llama_deploy.errors import DeploymentFailedError
from llama_deploy.runtime.http_client import http_client

if TYPE_CHECKING:
    import httpx2

ASK_TIMEOUT_S = 10.0
"""How long a control plane may take to say which releases it has, or to take note of one."""
LOOK_AGAIN_S = 0.25
LOOK_AGAIN_MOST_S = 1.0
"""Pause between two looks at what is left; it grows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishingVersion:
    """A version that finishes its tasks."""

    number: int
    tasks: int
    """Those that have not ended."""
    finish_by: float | None
    """When the rest goes on with the present version, in seconds since the epoch."""


class Processes(Protocol):
    """What is needed of the deployment whose versions these are."""

    name: str

    @property
    def url(self) -> str:
        """Where its control plane is."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """How to make oneself known there."""
        ...

    def releases_at_work(self) -> dict[str, list[str]]:
        """Versions that service processes are of, with the names of those; processes that retire are left out."""
        ...

    def retire(self, names: list[str]) -> None:
        """Have processes finish what they hold, and end."""


class Finishing:
    """The earlier versions of one deployment at work. Its methods are for the thread of one event loop."""

    def __init__(self, processes: Processes, *, tell: Callable[[str, str], None], changed: Callable[[], None]) -> None:
        self._processes = processes
        self._tell = tell
        self._changed = changed
        self._watching: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        """What is current does not change while it is looked at."""
        self._wanted = ""
        self._current = ""
        self._starting = ""
        self.versions: tuple[FinishingVersion, ...] = ()
        """Those that still finish something, the newest last."""

    @contextlib.contextmanager
    def starting(self, number: int) -> Iterator[None]:
        """Within the block, processes of a version are being started that is not current yet: they are left alone."""
        self._starting = str(number)
        try:
            yield
        finally:
            self._starting = ""

    async def follow(self, number: int, *, now: bool = False) -> list[str]:
        """Have tasks begin with a version from now on; returns the releases before it that still have to finish theirs.

        With `now` the version before has no time for that. Raises `DeploymentFailedError` where the control plane does
        not take note of it in time; it may have all the same (`insist`).
        """
        body = {"finish_within_s": 0.0} if now else {}
        async with self._turn:
            view = await self._ask("PUT", f"/v1/releases/{number}", body)
            self._wanted = str(number)
            self._take(view)
        return [one["release"] for one in view["items"] if one["release"] != self._current]

    def insist(self, number: int) -> None:
        """Tasks are to begin with this version, whatever the control plane was told meanwhile."""
        self._wanted = str(number)
        self.watch()

    async def retire(self, release: str) -> None:
        """Have the tasks of a version go on with the present one, at once."""
        await self._ask("DELETE", f"/v1/releases/{release}", missing_ok=True)

    def watch(self) -> None:
        """Look after what finishes until nothing does, beside whatever else happens."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Look after nothing any more. Repeating it does nothing."""
        watching, self._watching = self._watching, None
        self.versions = ()
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    # --- looking after them -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        pause_s, told = LOOK_AGAIN_S, False
        while True:
            try:
                async with self._turn:
                    if await self._look():
                        return
                told = False
            except DeploymentFailedError as error:
                if not told:
                    self._tell("finishing", f"what is left cannot be asked for now: {error.why or error.what}")
                told = True
            await asyncio.sleep(pause_s)
            pause_s = min(LOOK_AGAIN_MOST_S, pause_s * 1.5)

    async def _look(self) -> bool:
        """Have versions retire that have finished; whether there is none left."""
        left = {str(one.number): one.tasks for one in self.versions}
        view = await self._ask("GET", "/v1/releases")
        if view["current"] != self._wanted:
            view = await self._ask("PUT", f"/v1/releases/{self._wanted}", {})
        self._take(view)
        left_alone = {self._current, self._starting}
        # Named now: the same version may be started again while the control plane is told that it has finished.
        at_work = {
            release: names for release, names in self._processes.releases_at_work().items() if release not in left_alone
        }
        known = {str(one.number) for one in self.versions}
        for one in self.versions:
            release = str(one.number)
            if release not in left_alone and (not one.tasks or release not in at_work):
                await self.retire(release)
                self._finished(release, one.tasks, at_work.get(release, []))
        for release in at_work.keys() - known:
            self._finished(release, left.get(release, 0), at_work[release])
        return not at_work and not known

    def _finished(self, release: str, tasks: int, names: list[str]) -> None:
        self.versions = tuple(one for one in self.versions if str(one.number) != release)
        if tasks:
            what = "1 task goes" if tasks == 1 else f"{tasks} tasks go"
            self._tell("finished", f"version {release} has no more time: {what} on with version {self._current}")
        else:
            self._tell("finished", f"version {release} has finished: no task is bound to it any more")
        self._processes.retire(names)

    def _take(self, view: dict[str, Any]) -> None:
        self._current = view["current"] or ""
        before = self.versions
        self.versions = tuple(
            FinishingVersion(number=int(one["release"]), tasks=one["tasks"], finish_by=one["finish_by"])
            for one in view["items"]
            if one["release"] != self._current and one["release"].isdigit()
        )
        if before != self.versions:
            self._changed()

    # --- asking -----------------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, missing_ok: bool = False
    ) -> dict[str, Any]:
        """Ask the control plane, again while it starts. Raises `DeploymentFailedError` where it does not answer."""
        import httpx2  # `verify`: a context for TLS takes a tenth of a second, and this is plain HTTP

        why = "it does not answer"
        try:
            async with (
                asyncio.timeout(ASK_TIMEOUT_S),
                http_client(
                    base_url=self._processes.url, headers=self._processes.headers, trust_env=False, verify=False
                ) as http,
            ):
                while True:
                    try:
                        answer = await http.request(method, path, json=body)
                        if answer.status_code == HTTPStatus.NOT_FOUND and missing_ok:
                            return {}
                        if answer.status_code < HTTPStatus.BAD_REQUEST:
                            found: dict[str, Any] = answer.json()
                            return found
                        why = _told(answer)
                    except httpx2.HTTPError as error:
                        why = str(error) or type(error).__name__
                    await asyncio.sleep(LOOK_AGAIN_S)
        except TimeoutError:
            raise DeploymentFailedError(
                f"the control plane of {self._processes.name} does not say which releases it has",
                why=why,
                fix=f"llamactl deployments logs {self._processes.name}",
            ) from None


def _told(answer: httpx2.Response) -> str:
    return f"{answer.status_code}: {answer.text[:500]}"
