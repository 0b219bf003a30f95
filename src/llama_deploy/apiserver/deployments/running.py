"""One deployment at work: its control plane, the processes of its services, and how one version follows another.

The control plane stays one process on one socket, which the server itself keeps open: whoever connects while it starts
again waits. An update starts the new version's processes beside the old ones; when all of them are ready new tasks
begin with them, and the old ones go on with theirs for a while (`finishing.py`). What is wanted is on record before it
is done here (`records.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from enum import Enum
from pathlib import Path

from llama_deploy.apiserver.deployments.commands import Commands
from llama_deploy.apiserver.deployments.finishing import Finishing
from llama_deploy.apiserver.deployments.options import RunningOptions
from llama_deploy.apiserver.deployments.pages import answers
from llama_deploy.apiserver.deployments.processes import (
    PAGE,
    PLANE,
    Processes,
    binds_tasks,
    label_of,
    listener,
    release_of,
)
from llama_deploy.apiserver.deployments.versions import Version
from llama_deploy.apiserver.serving import control_plane_settings
from llama_deploy.apiserver.supervisor import ChildSpec, ChildState, ChildStatus, RestartPolicy, Supervisor
from llama_deploy.errors import DeploymentFailedError, LlamaDeployError
from llama_deploy.runtime.lifeline import Guard
from llama_deploy.runtime.line_log import LineLog

STOP_GRACE_S = 5.0
"""How much longer than its drain a process may take to end before it is killed."""

Open = Callable[[int], Version | None]
"""Opens an earlier version by its number; `None` where it is not kept any more."""
Tell = Callable[[str, str], None]
"""Takes note of something that happened: its kind, and what it was."""


class State(str, Enum):
    """How a deployment stands."""

    STARTING = "starting"
    RUNNING = "running"
    UPDATING = "updating"
    DEGRADED = "degraded"
    """Some of its processes do not run; the others work."""
    FAILED = "failed"
    """Its control plane, or every process of a service, has failed and is not started again by itself."""
    STOPPING = "stopping"
    STOPPED = "stopped"


class RunningDeployment:
    """The processes of one deployment. Its methods are for the thread of one event loop."""

    def __init__(
        self,
        name: str,
        data: Path,
        *,
        options: RunningOptions,
        guard: Guard,
        tell: Tell,
        changed: Callable[[], None],
        open_: Open,
    ) -> None:
        self.name = name
        self.data = data
        self.log = LineLog(data / "log" / "deployment.log")
        self.version: Version | None = None
        self.number = 0
        self.label = ""
        """What the names of the present version's processes end with: its number, and which start of it this is."""
        self._starts: Counter[int] = Counter()
        self.page_port: int | None = None
        """Where the page's own process listens, if it has one."""
        self._pages: dict[str, asyncio.Task[None]] = {}
        self.replicas: dict[str, int] = {}
        """How many processes somebody asked for, by service."""
        self._options = options
        self._tell = tell
        self._told = changed
        self._open = open_
        self.finishing = Finishing(self, tell=tell, changed=changed)
        """The earlier versions that finish their tasks."""
        self._busy = State.STOPPED
        self._problem = ""
        """Why the last start came to nothing, where no process can say."""
        self._changed = asyncio.Event()
        self._retiring: dict[asyncio.Task[None], None] = {}
        self._processes = Processes(name=name, data=data, options=options, listener=listener())
        self._commands = Commands(guard)
        self._supervisor = Supervisor(
            [],
            on_event=self._child_changed,
            policy=RestartPolicy(
                restarts_max=options.restarts_max,
                period_s=options.restart_period_s,
                initial_s=options.restart_pause_s,
            ),
            stop_timeout_s=options.drain_timeout_s + STOP_GRACE_S,
            write=self.log.write,
            guard=guard,
        )

    # --- how it stands ----------------------------------------------------------------------------------------------

    @property
    def headers(self) -> dict[str, str]:
        """How the API server makes itself known to its control plane, which lets in nobody else but its services."""
        return self._processes.headers

    @property
    def address(self) -> tuple[str, int]:
        """Where its control plane listens, on this machine only."""
        return self._processes.address

    @property
    def url(self) -> str:
        """The URL of its control plane, for this machine only."""
        return self._processes.url

    @property
    def children(self) -> tuple[ChildStatus, ...]:
        """How each of its processes stands."""
        return self._supervisor.statuses

    @property
    def state(self) -> State:
        """How it stands as a whole."""
        if self._busy is not State.RUNNING:
            return self._busy
        statuses = [one for one in self.children if one.state is not ChildState.STOPPING and not self._is_old(one)]
        if not any(one.name == PLANE for one in statuses):
            return State.FAILED
        failed = [one for one in statuses if one.state is ChildState.FAILED]
        if any(one.name == PLANE for one in failed):
            return State.FAILED
        alive = {one.service for one in statuses if one.state is not ChildState.FAILED}
        if any(one.service not in alive and one.service != PAGE for one in failed):
            return State.FAILED
        return State.RUNNING if all(one.ready for one in statuses) else State.DEGRADED

    def why_failed(self) -> str:
        """How the processes that have failed ended, with the last lines of each."""
        told = []
        for status in self.children:
            if status.state is ChildState.FAILED:
                lines = "".join(f"\n  {line}" for line in status.last_lines)
                told.append(f"{status.name}: {status.ended}{lines}")
        return "\n".join(told) or self._problem

    # --- what is done to it -----------------------------------------------------------------------------------------

    async def start(self, version: Version, number: int) -> None:
        """Start a version where none runs, and wait until all of it is ready.

        Raises `DeploymentFailedError` where a process fails or is not ready in time; what runs of it stays.
        """
        self._busy = State.STARTING
        self.version, self.number, self.label = version, number, self._label(number)
        try:
            page = self._processes.page(version, self.label)
            specs = [self._processes.plane(version, number), *self._services(version, self.label), *page]
            await self._supervisor.replace(specs)
            await self._all_ready({spec.name for spec in specs}, number)
            self._show(page)
            if binds_tasks(version):
                await self._go_on_finishing(await self.finishing.follow(number))
            self._problem = ""
        except LlamaDeployError as error:
            self._problem = str(error)
            raise
        finally:
            self._busy = State.RUNNING
            self._told()

    async def update(self, version: Version, number: int, *, now: bool = False) -> None:
        """Have another version take the place of the one that runs; returns when all of it is ready.

        Tasks begin with it from then on, and those of the earlier one finish where they began, which may go on for a
        while: not with `now`, which lets its processes finish the steps that they hold and no more. Raises
        `DeploymentFailedError` where the new version does not start: everything is as it was then.
        """
        before, before_number = self.version, self.number
        assert before is not None, "a version runs"
        self._busy = State.UPDATING
        other_plane = _other_plane(before, version)
        label = self._label(number)
        try:
            page = self._processes.page(version, label)
            specs = [*self._services(version, label), *page]
            if other_plane:
                await self._check_plane(version)
                await self._replace_plane(version, number)
            earlier = [one for one in self.children if one.name != PLANE and one.state is not ChildState.STOPPING]
            added = [spec.name for spec in specs]
            try:
                with self.finishing.starting(number):
                    await self._add(specs)
                    await self._all_ready({PLANE, *added}, number)
                    if binds_tasks(version):
                        await self.finishing.follow(number, now=now)
            except LlamaDeployError:
                if binds_tasks(before):
                    self.finishing.insist(before_number)
                await asyncio.gather(*(self._supervisor.remove(name) for name in added))
                if other_plane:
                    await self._replace_plane(before, before_number)
                raise
            self.version, self.number, self.label = version, number, label
            self._show(page)
            # The page has one version at a time; what an earlier start of this version holds goes on with this one.
            done = {one.name for one in earlier if one.service == PAGE or release_of(one.name) == str(number)}
            self.retire([one.name for one in earlier if one.name in done or not binds_tasks(version)])
            if binds_tasks(version):
                self.finishing.watch()
        finally:
            self._busy = State.RUNNING
            self._told()

    async def finish(self, number: int | None = None) -> None:
        """Have the tasks of an earlier version, or of all, go on with the present one; their processes retire."""
        for one in self.finishing.versions:
            if number in (None, one.number):
                await self.finishing.retire(str(one.number))
        self.finishing.watch()

    async def scale(self, service: str, count: int) -> None:
        """Have so many processes of a service; returns when further ones are ready. What is too much retires."""
        assert self.version is not None, "a version runs"
        self.replicas[service] = count
        here = [one for one in self.children if one.service == service and not self._is_old(one)]
        now = [one.name for one in here if one.state is not ChildState.STOPPING]
        names = {one.name for one in here}  # also of those that retire
        further = self._processes.further(self.version, self.label, service, count - len(now), besides=names)
        added = await self._add(further)
        self.retire(now[count:])
        await self._all_ready(set(added), self.number)

    async def restart(self) -> None:
        """Start the processes that have failed again, with a new restart budget, and wait until they are ready."""
        failed = [one for one in self.children if one.state is ChildState.FAILED]
        for one in failed:  # at once: what has failed does not have to end, and is not retired in between
            await self._supervisor.restart(one.name)
        await self._all_ready({one.name for one in failed if not self._is_old(one)}, self.number)

    async def stop(self) -> None:
        """End every process: services finish what they hold within the drain, then the control plane ends.

        What is not finished is on record, and goes on with the next start. Repeating it does nothing.
        """
        self._busy = State.STOPPING
        await self.finishing.stop()
        try:
            names = [status.name for status in self.children if status.name != PLANE]
            await asyncio.gather(*(self._supervisor.remove(name) for name in names))
            await asyncio.gather(*self._retiring, return_exceptions=True)
            await self._supervisor.replace([])
        finally:
            self._busy = State.STOPPED
            self._told()

    def kill(self) -> None:
        """End every process now."""
        self._supervisor.kill()

    def close(self) -> None:
        """Let go of its socket and its log; all of its processes have ended."""
        self._processes.listener.close()
        self.log.end()

    # --- its processes ----------------------------------------------------------------------------------------------

    def _services(self, version: Version, label: str) -> list[ChildSpec]:
        return self._processes.services(version, label, self.replicas)

    def _show(self, page: list[ChildSpec]) -> None:
        """Pass requests for the page on to this process of it from now on."""
        self.page_port = int(page[0].environment["PORT"]) if page else None

    def _label(self, number: int) -> str:
        """A new label: a version that is started again meets the processes of its earlier start, which retire."""
        self._starts[number] += 1
        return str(number) if self._starts[number] == 1 else f"{number}.{self._starts[number]}"

    async def _add(self, specs: Iterable[ChildSpec]) -> list[str]:
        added = []
        for spec in specs:
            await self._supervisor.add(spec)
            added.append(spec.name)
        return added

    async def _replace_plane(self, version: Version, number: int) -> None:
        spec = self._processes.plane(version, number)
        self._tell("control plane", f"starts again for version {number}")
        await self._supervisor.remove(PLANE)
        await self._supervisor.add(spec)

    async def _check_plane(self, version: Version) -> None:
        """Raise `DeploymentFailedError` where the control plane of a version would not start."""
        command = self._processes.program(None, "check", str(version.folder))
        wait_s = self._options.start_timeout_s
        ran = await self._commands.run(command, folder=version.tree, environment=os.environ, timeout_s=wait_s)
        if ran.code or ran.timed_out:
            raise DeploymentFailedError(
                f"the control plane of {self.name} would not start",
                why=f"it took more than {wait_s:g} s to load" if ran.timed_out else ran.err,
                fix="correct its orchestrator",
            )

    def retire(self, names: list[str]) -> None:
        """Have processes finish what they hold, and end."""
        for name in names:
            task = asyncio.create_task(self._retire_one(name))
            self._retiring[task] = None
            task.add_done_callback(lambda done: self._retiring.pop(done, None))

    async def _go_on_finishing(self, releases: list[str]) -> None:
        """Start the processes of earlier versions again whose tasks have not ended; their readiness is not waited for.

        The tasks of one that is not kept, or cannot start any more, go on with the present version.
        """
        for release in releases:
            version = self._open(int(release)) if release.isdigit() else None
            try:
                specs = self._services(version, self._label(int(release))) if version is not None else []
            except LlamaDeployError as error:
                self._tell("finishing", f"version {release} cannot go on: {error}")
                specs = []
            if not specs:
                await self.finishing.retire(release)
            else:
                self._tell("finishing", f"version {release} goes on with the tasks that began with it")
                await self._add(specs)
        self.finishing.watch()

    def releases_at_work(self) -> dict[str, list[str]]:
        """Versions that service processes are of, with the names of those; processes that retire are left out."""
        found: dict[str, list[str]] = {}
        for one in self.children:
            if one.state is not ChildState.STOPPING and one.name != PLANE and one.service != PAGE:
                found.setdefault(release_of(one.name), []).append(one.name)
        return found

    def _is_old(self, status: ChildStatus) -> bool:
        """Whether a process is of an earlier version, which finishes its tasks or retires."""
        return status.name != PLANE and label_of(status.name) != self.label

    async def _retire_one(self, name: str) -> None:
        await self._supervisor.retire(name, self._options.update_drain_s)
        self._tell("retired", f"{name} has ended")
        self._told()

    # --- what happens to them ---------------------------------------------------------------------------------------

    async def _all_ready(self, names: set[str], number: int) -> None:
        """Wait until these processes are ready.

        Raises `DeploymentFailedError` when one has failed, is too late, or is not wanted any more.
        """
        wait_s = self._options.start_timeout_s
        async with self._pages_answer(names):
            try:
                async with asyncio.timeout(wait_s):
                    self._changed.clear()
                    while self._late(names, number):
                        await self._changed.wait()
                        self._changed.clear()
            except TimeoutError:
                if late := self._late(names, number):
                    raise _not_started(self.name, number, late[0], wait_s) from None

    def _late(self, names: set[str], number: int) -> list[ChildStatus]:
        """Those of these processes that are not ready yet. Raises `DeploymentFailedError` for one that will not be."""
        statuses = [status for status in self.children if status.name in names]
        if gone := names.difference(status.name for status in statuses):
            raise _taken_away(self.name, number, min(gone))
        for status in statuses:
            if status.state is ChildState.FAILED:
                raise _not_started(self.name, number, status)
        silent = {name for name, page in self._pages.items() if not page.done()}
        return [status for status in statuses if not status.ready or status.name in silent]

    @contextlib.asynccontextmanager
    async def _pages_answer(self, names: set[str]) -> AsyncIterator[None]:
        """Within the block, `_pages` are done when what they wait for takes connections."""
        for spec in self._supervisor.specs:
            if spec.name in names and spec.service == PAGE:
                page = self._pages[spec.name] = asyncio.create_task(answers(int(spec.environment["PORT"])))
                page.add_done_callback(lambda _: self._changed.set())
        try:
            yield
        finally:
            for page in self._pages.values():
                page.cancel()
            self._pages.clear()

    def _child_changed(self, status: ChildStatus) -> None:
        if status.state is ChildState.BACKOFF:
            self._tell("restarting", f"{status.name}: {status.ended}; it starts again in {status.pause_s:g} s")
        elif status.state is ChildState.FAILED:
            after = f" after {status.restarts} restarts" if status.restarts else ""
            self._tell("failed", f"{status.name}: {status.ended}{after}{_said_last(status)}")
        elif status.ready:
            self._tell("ready", f"{status.name} is ready (process {status.pid})")
        self._changed.set()
        self._told()


def _said_last(status: ChildStatus) -> str:
    """The line that says most of why a process has ended: an error of ours has its own first, others come last."""
    lines = [line for line in status.last_lines if line.strip()]
    ours = [line for line in lines if line.startswith("Error LD")]
    return f": {(ours or lines)[-1]}" if lines else ""


def _not_started(name: str, number: int, status: ChildStatus, waited_s: float | None = None) -> DeploymentFailedError:
    how = status.ended or status.state.value
    if waited_s is not None and status.state is not ChildState.FAILED:
        how = f"not ready after {waited_s:g} s" + (f", {status.ended}" if status.ended else "")
    return DeploymentFailedError(
        f"version {number} of {name} does not start: {status.name}: {how}",
        why="\n".join(status.last_lines),
        fix=f"llamactl deployments logs {name}   what its processes print",
        child=status.name,
        version=number,
    )


def _taken_away(name: str, number: int, child: str) -> DeploymentFailedError:
    return DeploymentFailedError(
        f"version {number} of {name} does not start: {child} was ended before all of it was ready",
        why="something else was done to the deployment meanwhile",
        fix=f"deploy it again; llamactl deployments logs {name} tells what happened",
        child=child,
        version=number,
    )


def _other_plane(before: Version, after: Version) -> bool:
    """Whether only a control plane that is started again takes notice of a version."""
    if control_plane_settings(before.file) != control_plane_settings(after.file):
        return True
    own = [one for one in (after.file.orchestrator, *after.file.orchestrators.values()) if one.import_path is not None]
    return bool(own) and before.files != after.files  # its own code may have changed, or what that imports
