"""All deployments of one API server: what people ask of it, recorded first and then done.

A request that changes a deployment waits for its turn, one at a time per deployment. After a crash of the server
nothing of it runs any more (`lifeline.py`); the next one starts what is on record, in the version that is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Self

from llama_deploy.apiserver.deployments.comparison import difference
from llama_deploy.apiserver.deployments.options import RunningOptions
from llama_deploy.apiserver.deployments.processes import PLANE
from llama_deploy.apiserver.deployments.records import (
    DeploymentRow,
    EventRow,
    Records,
    VersionRow,
    VersionState,
    Wanted,
)
from llama_deploy.apiserver.deployments.running import RunningDeployment, State
from llama_deploy.apiserver.deployments.versions import Offer, Version, Versions
from llama_deploy.apiserver.wording import did_you_mean, listed
from llama_deploy.errors import (
    DeploymentExistsError,
    DeploymentFailedError,
    DeploymentNotFoundError,
    DeploymentUnavailableError,
    InvalidRequestError,
    LimitExceededError,
    LlamaDeployError,
    StoreLockedError,
    StoreUnavailableError,
    VersionNotFoundError,
)
from llama_deploy.runtime.lifeline import Guard
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.apiserver")

DEPLOYMENTS_MAX = 100
VERSIONS_KEPT = 10
REPLICAS_MAX = 100


class DeploymentServer:
    """The deployments below one folder. Use it as an async context manager: it starts them, and ends them cleanly."""

    def __init__(
        self, data: Path, *, options: RunningOptions | None = None, deployments_max: int = DEPLOYMENTS_MAX
    ) -> None:
        self.data = data.absolute()
        self.deployments_max = deployments_max
        self.started_at = time.time()
        self._options = options or RunningOptions()
        self._guard = Guard()
        self._running: dict[str, RunningDeployment] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._watchers: set[asyncio.Event] = set()
        self._fresh: list[tuple[str, str]] = []
        """Names and digests of versions that are about to be recorded."""
        self._closed = False

    async def __aenter__(self) -> Self:
        self.data.mkdir(parents=True, exist_ok=True)
        self.data.chmod(0o700)
        self._lock = _only_one(self.data)
        self.records = Records(self.data / "deployments.db")
        self.versions = Versions(self.data, self._guard)
        self.versions.clear_staging()
        self._guard.start()
        for row in self.records.deployments():
            if row.wanted is Wanted.DELETED:
                self._remove(row.name)
                self._prune_folders()
                continue
            running = self._place(row.name)
            if row.wanted is Wanted.RUNNING:
                self._spawn(self._recover(running))
        return self

    async def __aexit__(self, *_: object) -> None:
        """End every process, as cleanly as the drain allows. What is wanted stays as it is."""
        self._closed = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        stops = [running.stop() for running in self._running.values()]
        for ended in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(ended, Exception):
                log.error("a deployment did not stop as it should", exc_info=ended)
        for running in self._running.values():
            running.close()
        self._guard.stop()
        self.records.close()
        self._lock.close()

    def kill(self) -> None:
        """End every process of every deployment now; the end of the context then takes no time."""
        for running in self._running.values():
            running.kill()

    # --- what there is ----------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The deployments by name."""
        return sorted(self._running)

    def find(self, name: str) -> RunningDeployment:
        """A deployment. Raises `DeploymentNotFoundError`."""
        found = self._running.get(name)
        if found is None:
            hint = did_you_mean(name, self.names)
            raise DeploymentNotFoundError(
                f"there is no deployment {name!r}{hint}",
                why=f"there are: {listed(self.names)}" if self.names else "there are none yet",
                fix="llamactl deployments list",
                known=self.names,
            )
        return found

    def serving(self, name: str) -> RunningDeployment:
        """A deployment whose control plane takes requests. Raises `DeploymentUnavailableError`."""
        found = self.find(name)
        if found.state in {State.STOPPED, State.STOPPING}:
            raise DeploymentUnavailableError(
                f"the deployment {name} is {found.state.value}",
                why="what it has recorded is kept",
                fix=f"llamactl deployments start {name}",
            )
        plane = next((child for child in found.children if child.name == PLANE), None)
        if plane is None or plane.state.value == "failed":
            raise DeploymentUnavailableError(
                f"the control plane of {name} has failed",
                why=found.why_failed(),
                fix=f"llamactl deployments logs {name}\nllamactl deployments restart {name}",
            )
        return found

    def row(self, name: str) -> DeploymentRow:
        """What is wanted of a deployment. Raises `DeploymentNotFoundError`."""
        self.find(name)
        row = self.records.deployment(name)
        assert row is not None, "what is placed is recorded"
        return row

    def history(self, name: str) -> list[VersionRow]:
        """The versions of a deployment, the newest first. Raises `DeploymentNotFoundError`."""
        self.find(name)
        return self.records.versions(name)

    # --- creating and changing --------------------------------------------------------------------------------------

    async def deploy(self, offer: Offer, *, replace: bool, now: bool = False) -> tuple[str, bool]:
        """Run what is offered, in the place of what runs under its name if need be; its name, and whether it is new.

        Returns when all of it is ready. The same offer twice changes nothing. Tasks of the version before finish on it
        for a while, not with `now`. Raises what `Versions.make` raises,
        `DeploymentExistsError` without `replace`, and `DeploymentFailedError` where it does not start: the version
        before it goes on then, if there is one.
        """
        async with self._made(offer) as version, self._turn(name := version.file.name):
            row = self.records.deployment(name)
            if row is not None and row.wanted is not Wanted.DELETED:
                return name, await self._replace(row, version, allowed=replace, now=now)
            if len(self._running) >= self.deployments_max:
                raise LimitExceededError(
                    f"there are {len(self._running)} deployments already",
                    fix="delete one, or raise --deployments-max",
                    setting="deployments_max",
                    limit=self.deployments_max,
                )
            number = self.records.put_version(name, version.digest)
            self._tell(name, "created", f"version {number}", number)
            await self._start(self._place(name), version, number)
        return name, True

    async def _replace(self, row: DeploymentRow, version: Version, *, allowed: bool, now: bool) -> bool:
        name = row.name
        current = self.records.version(name, row.version)
        if current is not None and current.digest == version.digest and row.wanted is Wanted.RUNNING:
            running = self._running[name]
            if running.state is State.FAILED:
                await self._again(running, current)
            return False
        if not allowed:
            raise DeploymentExistsError(
                f"there is a deployment {name!r} already",
                fix=f"llamactl deploy FILE   have it take the place of the one that runs\n"
                f"llamactl deployments delete {name}   remove that one first",
            )
        number = self.records.put_version(name, version.digest)
        self._tell(name, "updating", f"from version {row.version} to {number}", number)
        await self._follow(name, version, number, before=row.version, now=now)
        self._prune(name)
        return True

    async def compare(self, offer: Offer) -> dict[str, Any]:
        """How what is offered differs from what is wanted under its name; nothing is changed.

        Raises what `Versions.make` raises.
        """
        async with self._made(offer) as version:
            name = version.file.name
            row = self.records.deployment(name)
            found = self.records.version(name, row.version) if row is not None else None
            before = self._open(name, found) if found is not None else None
            answer = await asyncio.to_thread(difference, before, version)
        self._prune_folders()
        return answer

    async def rollback(self, name: str, number: int | None = None, *, now: bool = False) -> int:
        """Go back to an earlier version, by default the last one before the present that was seen to run; its number.

        Tasks of the present version finish on it for a while, not with `now`. Raises `VersionNotFoundError`, and what
        `deploy` raises where it does not start.
        """
        async with self._turn(name):
            row = self.row(name)
            history = self.records.versions(name)
            if number is None:
                earlier = [one for one in history if one.number < row.version and one.state is VersionState.PROVED]
                if not earlier:
                    raise VersionNotFoundError(f"{name} has no earlier version that was seen to run")
                number = earlier[0].number
            found = next((one for one in history if one.number == number), None)
            if found is None:
                known = ", ".join(str(one.number) for one in history)
                raise VersionNotFoundError(f"{name} has no version {number}", why=f"it has: {known}")
            version = self._open(name, found)
            self.records.want(name, wanted=Wanted.RUNNING, version=number)
            self._tell(name, "rolling back", f"from version {row.version} to {number}", number)
            if number != self._running[name].number or self._running[name].state is not State.RUNNING:
                await self._follow(name, version, number, before=row.version, now=now)
        return number

    async def finish(self, name: str, number: int | None = None) -> None:
        """Have the tasks that finish on an earlier version, or on any, go on with the present one.

        Raises `VersionNotFoundError` for a version that finishes nothing.
        """
        async with self._turn(name):
            running = self.find(name)
            known = [one.number for one in running.finishing.versions]
            if number is not None and number not in known:
                finishing = ", ".join(map(str, known)) or "none"
                raise VersionNotFoundError(f"version {number} of {name} finishes nothing", why=f"versions: {finishing}")
            await running.finish(number)

    async def scale(self, name: str, service: str, count: int | None) -> None:
        """Have so many processes of a service from now on, also in later versions; `None`: as many as the file says."""
        if count is not None and not 1 <= count <= REPLICAS_MAX:
            raise InvalidRequestError(f"replicas: from 1 to {REPLICAS_MAX}, not {count}")
        async with self._turn(name):
            running = self.find(name)
            version = running.version or self._open(name, self._wanted_version(name))
            names = [one.name for one in version.file.services]
            if service not in names:
                raise InvalidRequestError(
                    f"{name} has no service {service!r}{did_you_mean(service, names)}", why=f"it has: {listed(names)}"
                )
            self.records.scale(name, service, count)
            wanted = count if count is not None else version.service(service).replicas
            self._tell(name, "scaled", f"{service} to {wanted}", None)
            if running.state not in {State.STOPPED, State.STOPPING}:
                await running.scale(service, wanted)

    async def stop(self, name: str) -> None:
        """End the processes of a deployment; what is unfinished is kept, and goes on when it is started again."""
        async with self._turn(name):
            running = self.find(name)
            self.records.want(name, wanted=Wanted.STOPPED)
            self._tell(name, "stopping", "on request", None)
            await running.stop()
            self._tell(name, "stopped", "on request", None)

    async def start(self, name: str) -> None:
        """Start a stopped deployment, or what has failed of a running one, and wait until all of it is ready."""
        async with self._turn(name):
            running = self.find(name)
            self.records.want(name, wanted=Wanted.RUNNING)
            await self._again(running, self._wanted_version(name))

    async def delete(self, name: str) -> None:
        """End a deployment, after its processes have drained, and remove all that it has kept."""
        async with self._turn(name):
            running = self.find(name)
            self.records.want(name, wanted=Wanted.DELETED)
            self._tell(name, "deleting", "on request", None)
            await running.stop()
            running.close()
            del self._running[name]
            await asyncio.to_thread(self._remove, name)
            self._prune_folders()
            self._notify()

    # --- events and logs --------------------------------------------------------------------------------------------

    async def events(self, name: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[EventRow]:
        """What happened to a deployment after an event; with `follow` what is to come too, until it is deleted."""
        self.find(name)
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            while True:
                event.clear()
                for row in self.records.events(name, after=after):
                    after = row.number
                    yield row
                if not follow or name not in self._running:
                    return
                await event.wait()
        finally:
            self._watchers.discard(event)

    def _tell(self, name: str, kind: str, message: str, version: int | None) -> None:
        if self._closed:
            return
        self.records.tell(name, kind, message, version=version)
        log.info(kind, deployment=name, message=message)
        self._notify()

    def _notify(self) -> None:
        for event in self._watchers:
            event.set()

    # --- doing it ---------------------------------------------------------------------------------------------------

    def _place(self, name: str) -> RunningDeployment:
        def tell(kind: str, message: str) -> None:
            try:
                self._tell(name, kind, message, running.number or None)
            except StoreUnavailableError:  # it has happened all the same, and who waits for it goes on
                log.exception("what happened is not recorded", deployment=name, kind=kind, message=message)

        def open_(number: int) -> Version | None:
            row = self.records.version(name, number)
            try:
                return self._open(name, row) if row is not None else None
            except VersionNotFoundError:
                return None

        running = RunningDeployment(
            name,
            self.data / "deployments" / name,
            options=self._options,
            guard=self._guard,
            tell=tell,
            changed=self._notify,
            open_=open_,
        )
        running.replicas = self.records.replicas(name)
        self._running[name] = running
        return running

    async def _recover(self, running: RunningDeployment) -> None:
        """Start what an earlier run of the server has left, in the version that is wanted."""
        name = running.name
        async with self._turn(name):
            try:
                found = self._wanted_version(name)
                await self._start(running, self._open(name, found), found.number)
            except LlamaDeployError as error:
                log.warning("a deployment did not start", deployment=name, error=str(error))

    async def _start(self, running: RunningDeployment, version: Version, number: int) -> None:
        """Start a version where none runs; one that never ran and does not gives way to the last one that did."""
        name = running.name
        try:
            await running.start(version, number)
        except LlamaDeployError as error:
            self._tell(name, "failed", str(error), number)
            self.records.judge(name, number, VersionState.FAILED, str(error))
            proved = [one for one in self.records.versions(name) if one.state is VersionState.PROVED]
            if not proved or any(one.number == number for one in proved):
                raise
            self.records.want(name, version=proved[0].number)
            self._tell(name, "rolling back", f"to version {proved[0].number}", proved[0].number)
            await running.stop()
            await running.start(self._open(name, proved[0]), proved[0].number)
            raise
        self.records.judge(name, number, VersionState.PROVED)
        self._tell(name, "running", f"version {number}", number)

    async def _again(self, running: RunningDeployment, row: VersionRow) -> None:
        """Start a version that is stopped or of which nothing was ever started, or what of it has failed."""
        if running.state is State.STOPPED or not running.children:
            await self._start(running, self._open(running.name, row), row.number)
        else:
            await running.restart()

    async def _follow(self, name: str, version: Version, number: int, *, before: int, now: bool) -> None:
        """Have a version take the place of the one that runs; where it does not start, that one stays."""
        running = self._running[name]
        if running.version is None or running.state in {State.STOPPED, State.FAILED}:
            await running.stop()
            await self._start(running, version, number)
            return
        try:
            await running.update(version, number, now=now)
        except LlamaDeployError as error:
            self.records.judge(name, number, VersionState.FAILED, str(error))
            self.records.want(name, version=before)
            self._tell(name, "failed", f"{error.what}; version {before} goes on", number)
            raise DeploymentFailedError(
                f"{error.what}; version {before} goes on", why=error.why, fix=error.fix, **error.details
            ) from error
        self.records.judge(name, number, VersionState.PROVED)
        self._tell(name, "running", f"version {number}", number)

    def _wanted_version(self, name: str) -> VersionRow:
        row = self.records.deployment(name)
        found = self.records.version(name, row.version) if row is not None else None
        if found is None:
            raise VersionNotFoundError(f"{name} has no version that could run")
        return found

    def _open(self, name: str, row: VersionRow) -> Version:
        try:
            return self.versions.open(name, row.digest)
        except OSError as error:
            raise VersionNotFoundError(
                f"the files of version {row.number} of {name} are gone", why=str(error)
            ) from error

    def _remove(self, name: str) -> None:
        """Remove what a deleted deployment has left, its record last: whoever starts next finishes what is cut off."""
        shutil.rmtree(self.data / "deployments" / name, ignore_errors=True)
        self.records.forget(name)

    def _prune(self, name: str) -> None:
        """Keep the newest versions, and the one that is wanted."""
        row = self.row(name)
        running = self._running[name]
        kept = {row.version, running.number, *(one.number for one in running.finishing.versions)}
        for old in self.records.versions(name)[VERSIONS_KEPT:]:
            if old.number not in kept:
                self.records.drop_version(name, old.number)
        self._prune_folders()

    def _prune_folders(self) -> None:
        """On the thread of the loop, like all that makes versions: none is made while this looks which there are."""
        rows = self.records.deployments()
        kept = {(row.name, version.digest) for row in rows for version in self.records.versions(row.name)}
        self.versions.prune(kept | set(self._fresh))

    @contextlib.asynccontextmanager
    async def _made(self, offer: Offer) -> AsyncIterator[Version]:
        """A new version, whose files stay at least as long as the block runs."""
        version = await self.versions.make(offer)
        known = (version.file.name, version.digest)
        self._fresh.append(known)
        try:
            yield version
        finally:
            self._fresh.remove(known)

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """One change of a deployment at a time."""
        lock = self._turns.setdefault(name, asyncio.Lock())
        async with lock:
            if self._closed:
                raise DeploymentUnavailableError("the API server is stopping", fix="ask again once it is back")
            yield

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())


def _only_one(data: Path) -> Any:
    """A lock that only one server has on a folder. Raises `StoreLockedError`."""
    import fcntl

    stream = (data / "lock").open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise StoreLockedError(
            f"another API server uses {data}", fix="stop it, or name another folder: --data FOLDER"
        ) from error
    return stream
