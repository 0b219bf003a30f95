"""The briefing, seen: documents in, a checked briefing out, and one service process killed on the way.

Starts the deployment beside this file as a stranger would (`llamactl serve`, SQLite, five service processes), submits
one task, follows it, and shows the briefing, where it was saved, and the task's timeline. `--help` says what else it
can do. Standard output has the briefing and the timeline, standard error everything else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import JOB, STEPS
from progress import Progress, progress_on
from rich.console import Console
from rich.markdown import Markdown
from server import ServerEndedError, serving
from steps.documents import Briefing
from steps.read import document_paths
from steps.summarise import configured_model

from llama_deploy import Client, LlamaDeployError, TaskState
from llama_deploy.cli.output import duration
from llama_deploy.cli.timeline import Timeline
from llama_deploy.cli.timeline_picture import print_timeline
from llama_deploy.errors import EXIT_CODE, Category

HERE = Path(__file__).resolve().parent
DEPLOYMENT = HERE / "deployment.yml"
UNFINISHED = (TaskState.SUBMITTED, TaskState.WORKING)
JOB_TIMEOUT_S = 900.0
"""With a model that takes its time; without one the job takes seconds."""
PLAIN_WIDTH = 100
READING_WIDTH_MAX = 110
FAILED, INTERRUPTED, TERMINATED = 1, 128 + signal.SIGINT, 128 + signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for."""

    folder: Path
    title: str
    output: Path
    store: str | None
    kill: bool


@dataclass
class Accident:
    """Kills one service process as soon as half of the steps are answered, and not before it holds one."""

    client: Client
    steps: int
    progress: Progress
    pid: int = 0
    """The process that was killed."""

    async def look(self, timeline: Timeline) -> None:
        """Strike, if it is time. A process that had just answered is no loss: then the next one is taken."""
        answered = sum(hop.ended == "answered" for hop in timeline.hops.values())
        lost = any(hop.attempt > 1 for hop in timeline.hops.values())
        if lost or 2 * answered < self.steps or answered == self.steps:
            return
        services = await self.client.list_services()
        instances = [(service.definition.service_name, one) for service in services for one in service.instances]
        if self.pid and (len(instances) < len(services) or self.pid in [one.pid for _, one in instances]):
            return  # the one that was killed has not been missed yet, or is not back
        busy = [(one.running, name, one.pid) for name, one in instances if one.running and one.pid]
        if busy:
            _, name, self.pid = min(busy)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            so_far = f"{answered} of {self.steps} steps are answered"
            self.progress.say(f"==> kill -9 {self.pid}, the process of `{name}`: {so_far}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code: 0 for a finished briefing, 130 when interrupted, or what went wrong."""
    options = _options(arguments)
    try:
        return asyncio.run(_until_terminated(options))
    except (KeyboardInterrupt, asyncio.CancelledError) as stopped:
        _complain("Interrupted. What was answered is recorded; the same command carries on from there.")
        return INTERRUPTED if isinstance(stopped, KeyboardInterrupt) else TERMINATED
    except ServerEndedError as error:
        _complain(f"The deployment has ended; it said last:\n\n{error}")
        return FAILED
    except LlamaDeployError as error:
        _complain(error.render())
        return EXIT_CODE[error.category]
    except TimeoutError:
        _complain(f"Not finished after {duration(JOB_TIMEOUT_S)}. The same command carries on from there.")
        return EXIT_CODE[Category.TIMEOUT]
    except OSError as error:
        _complain(f"{error.strerror}: {error.filename}" if error.filename else str(error))
        return FAILED


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description="Make a briefing of a folder of documents.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "documents", help="what to read")
    parser.add_argument("--title", help="the briefing's title [the folder's name]")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to save it [briefing.md beside this program]"
    )
    parser.add_argument("--store", metavar="FILE", help="where the engine keeps its data [.llama_deploy/briefing.db]")
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="leave the service processes in peace")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    if not folder.is_dir() or not document_paths(str(folder)):
        parser.error(f"there are no documents in {folder}")
    data = HERE if os.access(HERE, os.W_OK) else Path(tempfile.mkdtemp(prefix="briefing-"))
    store = given.store if given.store or data == HERE else str(data / "briefing.db")
    title = given.title or ("Keeping time" if folder == HERE / "documents" else folder.name)
    output = (given.output or data / "briefing.md").resolve()
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        parser.error(f"{output} cannot be written")
    return Options(folder=folder, title=title, output=output, store=store, kill=given.kill)


async def _until_terminated(options: Options) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    run = Run(options)
    briefing = await run.briefing()
    options.output.write_text(briefing.markdown, encoding="utf-8")
    run.present(briefing)
    return 0


class Run:
    """One run of the example."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._documents = document_paths(str(options.folder))
        self._timeline = Timeline()
        self._progress = progress_on(Console(stderr=True), self._timeline, self._documents)
        self._began_at = time.monotonic()

    async def briefing(self) -> Briefing:
        """Have the deployment make it. Raises `TaskFailed`, `ServerEndedError`, `TimeoutError`."""
        say = self._progress.say
        say(f"==> {len(self._documents)} documents in {_shown(self._options.folder)}")
        model = configured_model()
        endpoint = os.environ.get("OPENAI_BASE_URL") or "api.openai.com"
        local = "of the documents' own sentences (with OPENAI_API_KEY or OPENAI_BASE_URL set, a model writes them)"
        say(f"==> summaries: {f'by {model} at {endpoint}' if model else local}")
        async with serving(DEPLOYMENT, store=self._options.store, report=lambda line: say(f"    {line}")) as server:
            await server.ready()
            say(f"==> control plane at {server.url}, data in {_shown(Path(server.store))}")
            async with asyncio.timeout(JOB_TIMEOUT_S), Client(server.url, reconnect_timeout_s=5.0) as client:
                return await server.while_running(self._follow(client))

    async def _follow(self, client: Client) -> Briefing:
        """Follow the task to its end, and kill a process on the way."""
        pids = [f"{s.definition.service_name} {i.pid}" for s in await client.list_services() for i in s.instances]
        self._progress.say(f"==> {len(pids)} service processes after {self._since()}: {', '.join(pids)}")
        task_id = await self._task(client)
        accident = Accident(client, len(self._documents) * len(STEPS) + 1, self._progress)
        try:
            async for entry in client.history(task_id, follow=True):
                hop = self._timeline.fold(entry)
                self._progress.show(entry, hop)
                if self._options.kill:
                    await accident.look(self._timeline)
            return await client.result(task_id, output_type=Briefing)
        finally:
            self._progress.close()

    async def _task(self, client: Client) -> str:
        """Submit the job, or find the one that an interrupted run on the same folder has left."""
        session_id = f"{JOB}-{hashlib.sha256(str(self._options.folder).encode()).hexdigest()[:12]}"
        left = [task.task_id async for task in client.list_tasks(state=UNFINISHED, session_id=session_id)]
        if left:
            self._progress.say(f"==> task {left[0]} of an interrupted run goes on")
            return left[0]
        order = {"documents": self._documents, "title": self._options.title}
        task_id = await client.submit(JOB, input=order, session_id=session_id)
        self._progress.say(f"==> task {task_id}")
        return task_id

    def present(self, briefing: Briefing) -> None:
        """Print the briefing, how it came about, and where it is."""
        console = Console()
        width = console.width if console.is_terminal else PLAIN_WIDTH
        page = Console(width=min(width, READING_WIDTH_MAX), emoji=False)
        page.print(Markdown(briefing.markdown, hyperlinks=False))
        print()
        print_timeline(self._timeline)
        again = [f"{hop.service} {Path(hop.tag).name}" for hop in self._timeline.again]
        took = f"{len(self._timeline.hops)} steps in {duration(self._timeline.seconds)}"
        more = f"; in more than one attempt: {', '.join(again)}" if again else ""
        print(f"\n{took}, all in all {self._since()}{more}")
        print(f"The briefing ({briefing.words:,} words) is in {_shown(self._options.output)}")

    def _since(self) -> str:
        return duration(time.monotonic() - self._began_at)


def _shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _complain(text: str) -> None:
    print(f"\n{text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
