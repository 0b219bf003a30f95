"""One deployment whose processes are small programs: what is done to it in turn, and what fails of that."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support import eventually

from llama_deploy.apiserver.deployments.options import RunningOptions
from llama_deploy.apiserver.deployments.processes import PAGE, PLANE, Processes, listener
from llama_deploy.apiserver.deployments.running import RunningDeployment, State
from llama_deploy.apiserver.deployments.versions import Version
from llama_deploy.apiserver.specs import ControlPlaneSpec, DeploymentFile, PageSpec, ServiceSpec
from llama_deploy.apiserver.supervisor import ChildSpec, ChildState
from llama_deploy.errors import DeploymentFailedError, SettingError
from llama_deploy.runtime.lifeline import Guard

SILENT = "import signal; signal.pause()"
READY = (  # and once it is asked to retire, it is busy for as long as it likes
    f"import os, signal; signal.signal({signal.SIGUSR1:d}, signal.SIG_IGN);"
    "os.write(int(os.environ['LLAMA_DEPLOY_READY_DESCRIPTOR']), b'!'); signal.pause()"
)
OUTSIDE, GONE = "../outside.db", "gone.db"


class Programs(Processes):
    """Programs that do nothing: a control plane, one service, perhaps a page."""

    def _runs(self, name: str, code: str, version: object = "", service: str = "", **environment: str) -> ChildSpec:
        return ChildSpec(
            name=name,
            command=(*self.program(None)[:-1], code),
            folder=self.data,
            environment=environment,
            service=service,
            tells_ready=code == READY,
            version=str(version),
        )

    def program(self, python: Path | None, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", "-c", SILENT)

    def plane(self, version: Version, number: int) -> ChildSpec:
        if version.file.store == OUTSIDE:
            raise SettingError("the store lies outside")
        return self._runs(PLANE, SILENT, number)

    def _service(self, version: Version, label: str, service: ServiceSpec, replica: int) -> ChildSpec:
        if version.file.store == GONE:
            raise SettingError("the secret of this version is gone")
        return self._runs(f"{service.name}/{replica}@{label}", READY, label, service.name)

    def page(self, version: Version, label: str) -> list[ChildSpec]:
        if version.file.page is None:
            return []
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            return [self._runs(f"ui@{label}", SILENT, label, PAGE, PORT=str(closed.getsockname()[1]))]


def a_version(folder: Path, *, page: PageSpec | None = None, store: str | None = None, shared: bool = True) -> Version:
    """One that finishes nothing where it is `shared`: nobody has to be asked for it."""
    file = DeploymentFile(
        path=folder / "deployment.yml",
        name="small",
        control_plane=ControlPlaneSpec(shared=shared),
        services=(ServiceSpec(name="work", import_path="code:work"),),
        page=page,
        store=store,
    )
    return Version(folder=folder, digest="", file=file)


@asynccontextmanager
async def deployed(folder: Path, **options: float) -> AsyncIterator[RunningDeployment]:
    """A deployment of these programs that runs in its first version."""
    guard = Guard()
    guard.start()
    running = RunningDeployment(
        "small",
        folder,
        options=RunningOptions(drain_timeout_s=0.0, **options),  # type: ignore[arg-type]
        guard=guard,
        tell=lambda kind, message: None,
        changed=lambda: None,
        open_=lambda number: None,
    )
    running._processes.listener.close()
    running._processes = Programs(name="small", data=folder, options=running._options, listener=listener())
    try:
        await running.start(a_version(folder), 1)
        yield running
    finally:
        running.kill()
        await running.stop()
        running.close()
        guard.stop()


def states(running: RunningDeployment) -> dict[str, ChildState]:
    return {one.name: one.state for one in running.children}


async def test_a_page_that_never_answers_is_a_version_that_does_not_start(tmp_path: Path) -> None:
    async with deployed(tmp_path) as running:
        object.__setattr__(running._options, "start_timeout_s", 0.5)
        with pytest.raises(DeploymentFailedError, match=r"ui@2: .*0.5 s"):
            await running.update(a_version(tmp_path, page=PageSpec()), 2)
        assert set(states(running)) == {PLANE, "work/1@1"}, "of the version that did not start nothing is left"
        assert running.number == 1


async def test_what_still_retires_does_not_keep_others_from_coming(tmp_path: Path) -> None:
    async with deployed(tmp_path) as running:
        await running.scale("work", 2)
        await running.scale("work", 1)
        await eventually(lambda: states(running)["work/2@1"] is ChildState.STOPPING)
        await running.scale("work", 3)
        assert states(running) == {
            PLANE: ChildState.RUNNING,
            "work/1@1": ChildState.RUNNING,
            "work/2@1": ChildState.STOPPING,
            "work/3@1": ChildState.RUNNING,
            "work/4@1": ChildState.RUNNING,
        }
        assert running.state is State.RUNNING
        await running.scale("work", 3)
        assert len(states(running)) == 5, "there are so many"


async def test_a_control_plane_that_cannot_follow_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    async with deployed(tmp_path) as running:

        async def sound(version: Version) -> None: ...

        running._check_plane = sound  # type: ignore[method-assign]
        before = running.children
        with pytest.raises(SettingError, match="outside"):
            await running.update(a_version(tmp_path, store=OUTSIDE), 2)
        assert running.children == before
        assert running.state is State.RUNNING


async def test_what_failed_and_is_retired_meanwhile_is_not_started_again(tmp_path: Path) -> None:
    async with deployed(tmp_path, restarts_max=0) as running:
        (failed,) = await running._add([Programs._runs(running._processes, "work/1@0", "raise SystemExit(2)", 0)])  # type: ignore[arg-type]
        await eventually(lambda: states(running)[failed] is ChildState.FAILED)
        running.retire([failed])
        await running.restart()
        await eventually(lambda: failed not in states(running))


async def test_a_control_plane_whose_code_never_loads_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    async with deployed(tmp_path) as running:
        object.__setattr__(running._options, "start_timeout_s", 0.5)
        before = running.children
        with pytest.raises(DeploymentFailedError, match="would not start") as failed:
            await running.update(a_version(tmp_path, store="another.db"), 2)
        assert failed.value.why == "it took more than 0.5 s to load"
        assert running.children == before


async def test_an_earlier_version_that_cannot_start_any_more_keeps_the_present_one_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with deployed(tmp_path) as running:
        retired: list[str] = []
        watched = asyncio.Event()

        async def follow(number: int) -> list[str]:
            return ["1"]

        async def retire(release: str) -> None:
            retired.append(release)

        monkeypatch.setattr(running, "_open", lambda number: a_version(tmp_path, store=GONE))
        monkeypatch.setattr(running.finishing, "follow", follow)
        monkeypatch.setattr(running.finishing, "retire", retire)
        monkeypatch.setattr(running.finishing, "watch", watched.set)
        await running.start(a_version(tmp_path, shared=False), 2)
        assert retired == ["1"], "its tasks go on with the present version"
        assert watched.is_set()
        assert set(states(running)) == {PLANE, "work/1@2"}
