"""The support desk, seen: ten real letters in, replies out, everything killed on the way, and people who are asked.

Starts `llamactl serve` on the deployment beside this file, hands in the letters, kills control plane and services with
SIGKILL in the middle, starts them again on the same data, and answers what waits for a person: from the terminal, or
from a script where there is none (`--script`). `--pictures FOLDER` writes the graph and the timeline of one letter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_deploy import Client
from llama_deploy.cli.timeline import Timeline
from llama_deploy.cli.timeline_picture import print_timeline
from llama_deploy.cli.timeline_svg import timeline_svg
from llama_deploy.errors import CannotReachError, ConnectionLostError
from llama_deploy.runtime.lifeline import SUPERVISOR_PID
from llama_deploy.types import TaskState

HERE = Path(__file__).resolve().parent
LOOK_AGAIN_S = 0.05
START_TIMEOUT_S, WHOLE_TIMEOUT_S = 60.0, 300.0
SCRIPT: dict[str, Any] = {
    "L01": "approve",
    "L02": {"edit": {"refund_cents": 5000, "text": "One of the two top-ups is on its way back to you."}},
    "L03": "approve",
    "L04": {"decision": "reject", "reason": "the fee is in the price list"},
    "L07": None,  # the clerk is at lunch: after the deadline the manager is asked
    "L09": "approve",
}
"""What people say where nobody sits at a terminal. The manager approves what the clerk has been silent on."""


class Desk:
    """The deployment as processes that can be killed: one port, one store, any number of starts."""

    def __init__(self, folder: Path, store: Path) -> None:
        self._folder = folder
        self._store = store
        self._process: asyncio.subprocess.Process | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.begun = folder / "begun"
        """Where the services note each step that they begin."""
        self.url = f"http://127.0.0.1:{self._port}"

    async def start(self) -> int:
        """Start it and wait until every service takes work; returns the process id of the control plane."""
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "llama_deploy.cli", "serve", str(HERE / "deployment.yml")]
        self._process = await asyncio.create_subprocess_exec(
            *(*command, "--port", str(self._port), "--store", str(self._store), "--ready-file", str(ready)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=(self._folder / "desk.log").open("ab"),
            env={
                **os.environ,
                SUPERVISOR_PID: str(os.getpid()),
                "DESK_BEGUN": str(self.begun),
            },  # it dies with us, even if we are killed
            process_group=0,
        )
        async with asyncio.timeout(START_TIMEOUT_S):
            while not ready.exists():
                if self._process.returncode is not None:
                    raise SystemExit((self._folder / "desk.log").read_text(encoding="utf-8")[-2000:])
                await asyncio.sleep(LOOK_AGAIN_S)
        return self._process.pid

    async def kill(self, services: Sequence[int]) -> None:
        """SIGKILL for the control plane and for the processes of its services."""
        assert self._process is not None
        for pid in [self._process.pid, *services]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        """End it as one ends it."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


class Run:
    """One run of the example."""

    def __init__(self, desk: Desk, ask: Callable[[str, dict[str, Any]], Any]) -> None:
        self._desk = desk
        self._ask = ask
        with (HERE / "letters.csv").open(encoding="utf-8", newline="") as file:
            self.letters = list(csv.DictReader(file))
        self.who: dict[str, str] = {}
        self.timelines = {letter["id"]: Timeline() for letter in self.letters}
        self.tasks: dict[str, str] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self._middle = asyncio.Event()
        self._up = asyncio.Event()

    async def play(self, client: Client) -> None:
        """Letters in, everything killed once, replies out."""
        pids = [one.pid for service in await client.list_services() for one in service.instances if one.pid]
        for letter in self.letters:
            given = {"letter": {"id": letter["id"], "text": letter["text"]}}
            self.tasks[letter["id"]] = await client.submit(None, input=given)
        print(f"{len(self.letters)} letters are recorded")
        self._up.set()
        async with asyncio.TaskGroup() as group:
            for name in self.tasks:
                group.create_task(self._follow(client, name))
            await self._middle.wait()
            await self._desk.kill(pids)
            self._up.clear()
            print(f"==> kill -9: the control plane and all services, {len(pids) + 1} processes; {self._stand()}")
            pid = await self._desk.start()
            print(f"==> started again on the same data (control plane {pid}); work goes on where it was")
            self._up.set()

    async def _follow(self, client: Client, name: str) -> None:
        """One letter to its end, with its questions answered on the way."""
        task_id, timeline = self.tasks[name], self.timelines[name]
        answered: set[str] = set()
        async for entry in client.history(task_id, follow=True):
            timeline.fold(entry)
            answered_steps = sum(bool(hop.ended) for one in self.timelines.values() for hop in one.hops.values())
            if answered_steps > len(self.letters):  # the specialists are at work
                self._middle.set()
            if entry.state is TaskState.INPUT_REQUIRED:
                await self._answer(client, name, answered)
        self.results[name] = await client.result(task_id)
        print(f"{name}  {self.results[name]['outcome']:<16}  {self.results[name]['reply']}")

    async def _answer(self, client: Client, name: str, answered: set[str]) -> None:
        """Ask whoever is to be asked, once for each question; what they say is sent until it is recorded."""
        said: Any = None
        asked = ""
        while True:
            await self._up.wait()
            try:
                prompt = (await client.get_task(self.tasks[name])).prompt
                if prompt is None or prompt["step_id"] in answered - {asked}:
                    return  # it was recorded before the connection broke, or nobody is asked any more
                if prompt["step_id"] != asked:
                    asked = prompt["step_id"]
                    answered.add(asked)
                    said = await asyncio.to_thread(self._ask, name, prompt)
                    person, value = prompt.get("to", "the clerk"), prompt["value"]
                    print(f"{name}  {person}: {value['why']} -> {_in_words(said)}")
                    if isinstance(said, dict) and "edit" in said:
                        said = {"decision": "edit", "value": {**value, **said["edit"]}}
                    self.who[name] = person
                if said is not None:  # else nobody answers; the deadline will
                    await client.send_input(self.tasks[name], said, step_id=asked)
            except (CannotReachError, ConnectionLostError):
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                return

    def _stand(self) -> str:
        hops = [hop for timeline in self.timelines.values() for hop in timeline.hops.values()]
        return f"{sum(bool(hop.ended) for hop in hops)} of {len(hops)} steps so far were answered"

    def table(self) -> None:
        """What came in, what went out, who agreed, and what ran again."""
        begun = Counter(self._desk.begun.read_text(encoding="utf-8").splitlines())
        twice: dict[str, list[str]] = {}
        for line, times in sorted(begun.items()):
            if times > 1:
                step_id, _, service = line.partition(" ")
                twice.setdefault(step_id.partition(":")[0], []).append(service)
        print(f"\n{'letter':<8}{'about':<15}{'outcome':<18}{'approved by':<14}{'steps':>5}  run again")
        for letter in self.letters:
            name, result = letter["id"], self.results[letter["id"]]
            hops = self.timelines[name].hops.values()
            again = ", ".join(twice.get(self.tasks[name], ())) or "-"
            outcome, who = result["outcome"], self.who.get(name, "-")
            who = who if outcome.startswith("refund") else "-"
            print(f"{name:<8}{result['topic']:<15}{outcome:<18}{who:<14}{len(hops):>5}  {again}")


def _in_words(said: Any) -> str:
    return "no answer yet" if said is None else said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def scripted(name: str, prompt: dict[str, Any]) -> Any:
    """What people say where nobody is there."""
    said = SCRIPT.get(name, "approve")
    return "approve" if said is None and prompt.get("to") == "the manager" else said


def typed(name: str, prompt: dict[str, Any]) -> Any:
    """Ask at the terminal."""
    value = prompt["value"]
    print(f"\n{name}, for {prompt.get('to')}: {value['letter']['text']}\n  {value['why']} ({value['rule']['place']})")
    given = input(f"  pay back {value['refund_cents'] / 100:.2f}? [y]es, [n]o, an amount, or nothing to wait: ").strip()
    if given.lower() in ("y", "yes"):
        return "approve"
    if given.lower() in ("n", "no"):
        return {"decision": "reject", "reason": "the desk has decided so"}
    with contextlib.suppress(ValueError):
        return {"edit": {"refund_cents": round(float(given) * 100)}}
    return None


async def _main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="desk-") as folder:
        desk = Desk(Path(folder), Path(options.store or Path(folder) / "desk.db"))
        run = Run(desk, scripted if options.script or not sys.stdin.isatty() else typed)
        try:
            print(f"control plane {await desk.start()} and six service processes at {desk.url}")
            async with (
                asyncio.timeout(WHOLE_TIMEOUT_S),
                Client(desk.url, reconnect_timeout_s=START_TIMEOUT_S) as client,
            ):
                await run.play(client)
                run.table()
                picture = await client.graph(run.tasks["L07"])
                print("\nL07 on its graph:")
                print("\n".join(picture.lines()), end="\n\n")
                print_timeline(run.timelines["L07"])
                if options.pictures is not None:
                    options.pictures.mkdir(parents=True, exist_ok=True)
                    (options.pictures / "graph.svg").write_text(picture.svg(), encoding="utf-8")
                    drawn = timeline_svg(run.timelines["L07"])
                    (options.pictures / "timeline.svg").write_text(drawn, encoding="utf-8")
        finally:
            await desk.stop()


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Ten letters to a bank's support desk, with a restart in the middle.")
    parser.add_argument("--script", action="store_true", help="do not ask at the terminal")
    parser.add_argument("--store", metavar="FILE", help="where the data is kept [a folder that is removed]")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the pictures of one letter there")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
