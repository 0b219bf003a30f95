"""What a change on disk means for a deployment that runs, with a real watcher on real files."""

from __future__ import annotations

import asyncio
import py_compile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import cache_from_source
from pathlib import Path

from tests.support import DEADLINE_S

from llama_deploy.apiserver.deployment_file import load_deployment_file
from llama_deploy.apiserver.reload import Change, FileChanged, Refused, ServicesChanged, changes

FILE = """\
name: demo
services:
  one: {import-path: "one/code:run"}
  two: {import-path: "code:run", source: {type: local, name: two}}
  three: {import-path: "code:run", source: {type: local, name: two}, env-files: [three.env]}
"""


class Watch:
    """The changes of a deployment, read as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._changes = changes(load_deployment_file(folder / "deployment.yml"))
        self._queue: asyncio.Queue[Change] = asyncio.Queue()
        self.acts = asyncio.Event()
        """Whoever acts on a change is done with it."""
        self.acts.set()

    async def follow(self) -> None:
        async for change in self._changes:
            self._queue.put_nowait(change)
            await self.acts.wait()

    async def next(self) -> Change:
        return await asyncio.wait_for(self._queue.get(), DEADLINE_S)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    async def ready(self) -> None:
        """Return once a change is noticed, and with nothing left to read."""
        number = 0
        while True:
            number += 1
            self.write("one/ready.py", f"ready = {number}\n")
            try:
                await asyncio.wait_for(self._queue.get(), 0.3)
            except TimeoutError:
                continue
            return


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[Watch]:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "code.py").write_text("run = 1\n")
    (folder / "three.env").write_text("A=1\n")
    (folder / "deployment.yml").write_text(FILE)
    watch = Watch(folder)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(watch.follow())
        await watch.ready()
        yield watch
        following.cancel()


async def test_code_concerns_the_services_of_its_folder(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        watch.write("two/code.py", "run = 2\n")
        change = await watch.next()
        assert isinstance(change, ServicesChanged)
        # The folder of `one` is that of the deployment file, which holds the folder of the others as well.
        assert change.services == ("one", "two", "three")
        watch.write("one/code.py", "run = 2\n")
        change = await watch.next()
        assert change == ServicesChanged(("one",), (tmp_path / "one" / "code.py",))


async def test_a_file_of_variables_concerns_the_services_that_read_it(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        watch.write("three.env", "A=2\n")
        assert await watch.next() == ServicesChanged(("three",), (tmp_path / "three.env",))


async def test_what_is_no_code_is_not_noticed(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        for name in (".venv/lib/a.py", "one/__pycache__/b.py", ".llama_deploy/c.py", ".git/d.py", "notes.md"):
            watch.write(name, "x = 1\n")
        watch.write("one/last.py", "x = 1\n")
        change = await watch.next()
        assert isinstance(change, ServicesChanged)
        assert change.files == (tmp_path / "one" / "last.py",)


async def test_half_typed_code_changes_nothing_until_it_compiles(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        watch.write("one/code.py", "run = (\n")
        change = await watch.next()
        assert isinstance(change, Refused)
        assert f"{tmp_path / 'one' / 'code.py'}:1:" in change.reason
        watch.write("two/code.py", "run = 3\n")
        change = await watch.next()
        assert isinstance(change, ServicesChanged)
        assert change.services == ("two", "three")
        watch.write("one/code.py", "run = ()\n")
        change = await watch.next()
        assert isinstance(change, ServicesChanged)
        assert change.services == ("one",)


async def test_a_deleted_module_concerns_its_services(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        (tmp_path / "one" / "code.py").unlink()
        assert await watch.next() == ServicesChanged(("one",), (tmp_path / "one" / "code.py",))


async def test_an_invalid_deployment_file_is_refused_and_read_again(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        watch.write("deployment.yml", FILE.replace("services", "servces"))
        change = await watch.next()
        assert isinstance(change, Refused)
        assert "did you mean `services`?" in change.reason
        watch.write("deployment.yml", FILE.replace("demo", "new"))
        change = await watch.next()
        assert isinstance(change, FileChanged)
        assert change.file.name == "new"


async def test_code_that_changes_together_with_the_file_is_not_forgotten(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        watch.write("one/code.py", "run = 2\n")
        watch.write("deployment.yml", FILE + '  four: {import-path: "one/code:run"}\n')
        change = await watch.next()
        assert isinstance(change, FileChanged)
        change = await watch.next()
        assert isinstance(change, ServicesChanged)
        assert change.services == ("one",)  # `four` starts with the new file anyway


async def test_a_new_deployment_file_brings_its_folders(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    async with watching(tmp_path / "here") as watch:
        watch.write("deployment.yml", 'name: demo\nservices:\n  one: {import-path: "code:run", path: ../elsewhere}\n')
        change = await watch.next()
        assert isinstance(change, FileChanged)
        await watch.ready()
        watch.write("../elsewhere/more.py", "x = 1\n")
        change = await watch.next()
        while isinstance(change, ServicesChanged) and "ready.py" in str(change.files):
            change = await watch.next()
        assert change == ServicesChanged(("one",), (tmp_path / "elsewhere" / "more.py",))


async def test_the_bytecode_of_a_changed_module_is_not_what_starts_next(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        module = tmp_path / "one" / "code.py"
        cached = Path(cache_from_source(str(module)))
        py_compile.compile(str(module), cfile=str(cached), doraise=True)  # as a process that imports it leaves it
        watch.write("one/code.py", "run = 2\n")  # within the same second, and of the same size
        assert isinstance(await watch.next(), ServicesChanged)
        assert cached not in set(_files(cached.parent))


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_file_of_variables_that_a_new_deployment_file_names_is_watched(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        watch.write("one.env", "A=1\n")
        watch.write("deployment.yml", FILE.replace('"one/code:run"', '"one/code:run", env-files: [one.env]'))
        assert isinstance(await watch.next(), FileChanged)
        watch.write("one.env", "A=2\n")
        assert await watch.next() == ServicesChanged(("one",), (tmp_path / "one.env",))


async def test_what_changes_while_a_new_deployment_file_is_acted_on_is_not_missed(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    async with watching(tmp_path / "here") as watch:
        watch.acts.clear()
        watch.write("deployment.yml", FILE + '  four: {import-path: "code:run", path: ../elsewhere}\n')
        assert isinstance(await watch.next(), FileChanged)
        watch.write("one/code.py", "run = 2\n")  # its service was not touched by the new file
        watch.acts.set()
        change = await watch.next()
        assert change == ServicesChanged(("one", "four"), (tmp_path / "here" / "one" / "code.py",))
