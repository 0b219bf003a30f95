"""The supervisor with real child processes: what it restarts, when it gives up, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import DEADLINE_S, eventually

from llama_deploy.apiserver.child import LINE_BYTES_MAX, ChildProcess, Output
from llama_deploy.apiserver.supervisor import ChildSpec, ChildState, ChildStatus, RestartPolicy, Supervisor
from llama_deploy.runtime.lifeline import SUPERVISOR_PID, Guard

QUICK = RestartPolicy(initial_s=0.01, cap_s=0.02, restarts_max=3)
FOREVER = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile 1: signal.pause()"
)
POLITE = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(0)));"
    "print('up', flush=True); signal.pause()"
)


def spec(program: str, tmp_path: Path, *, name: str = "a", **environment: str) -> ChildSpec:
    return ChildSpec(name=name, command=(sys.executable, "-c", program), folder=tmp_path, environment=environment)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors() -> set[str]:
    """What this process has open."""
    return {one.name for one in Path("/proc/self/fd").iterdir()}


class House:
    """A supervisor with everything that it told."""

    def __init__(
        self, supervisor: Callable[[Callable[[ChildStatus], None], Callable[[str], None]], Supervisor]
    ) -> None:
        self.events: list[ChildStatus] = []
        self.lines: list[str] = []
        self.changed = asyncio.Event()
        self.supervisor = supervisor(self._event, self._line)

    def _event(self, status: ChildStatus) -> None:
        self.events.append(status)
        self.changed.set()

    def _line(self, line: str) -> None:
        self.lines.append(line)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        await eventually(condition, DEADLINE_S, changed=self.changed)

    def states(self, name: str = "a") -> list[ChildState]:
        return [event.state for event in self.events if event.name == name]

    def status(self, name: str = "a") -> ChildStatus:
        return next(status for status in self.supervisor.statuses if status.name == name)

    def status_of_end(self, name: str) -> str:
        return next(event.ended for event in reversed(self.events) if event.name == name)

    def pid(self, name: str = "a") -> int:
        pid = self.status(name).pid
        assert pid is not None
        return pid


@asynccontextmanager
async def supervising(
    *specs: ChildSpec, policy: RestartPolicy = QUICK, stop_timeout_s: float = DEADLINE_S
) -> AsyncIterator[House]:
    house = House(
        lambda event, line: Supervisor(specs, on_event=event, write=line, policy=policy, stop_timeout_s=stop_timeout_s)
    )
    await house.supervisor.start()
    try:
        yield house
    finally:
        house.supervisor.kill()
        await house.supervisor.stop()


async def test_output_comes_line_by_line_with_the_name_in_front(tmp_path: Path) -> None:
    program = f"import sys, signal; print('one'); print('two', file=sys.stderr); {FOREVER}"
    async with supervising(spec(program, tmp_path)) as house:
        await house.until(lambda: "[a] up\n" in house.lines)
        assert house.lines[:2] == ["[a] one\n", "[a] two\n"]


async def test_a_line_without_end_is_broken(tmp_path: Path) -> None:
    program = f"print('x' * {5 * LINE_BYTES_MAX}); raise SystemExit(2)"
    async with supervising(spec(program, tmp_path)) as house:
        await house.supervisor.wait()
        assert "".join(line.removeprefix("[a] ").rstrip("\n") for line in house.lines) == "x" * 5 * LINE_BYTES_MAX
        assert all(len(line) < 3 * LINE_BYTES_MAX for line in house.lines)


async def test_what_a_child_says_last_without_a_newline_is_kept(tmp_path: Path) -> None:
    async with supervising(spec("print('half', end=''); raise SystemExit(2)", tmp_path)) as house:
        await house.supervisor.wait()
        assert house.lines == ["[a] half\n"]
        assert house.status().last_lines == ("half",)


async def test_a_child_gets_its_variables_and_its_folder_and_no_input(tmp_path: Path) -> None:
    program = f"import os, sys; print(os.environ['COLOUR'], os.getcwd(), repr(sys.stdin.read())); {FOREVER}"
    async with supervising(spec(program, tmp_path, COLOUR="green")) as house:
        await house.until(lambda: house.lines)
        assert house.lines[0] == f"[a] green {tmp_path} ''\n"


async def test_a_child_leads_its_own_process_group(tmp_path: Path) -> None:
    async with supervising(spec(FOREVER, tmp_path)) as house:
        assert os.getpgid(house.pid()) == house.pid() != os.getpgrp()


@pytest.mark.parametrize(
    ("end", "words"), [("raise SystemExit(0)", "exit code 0"), ("import os; os.abort()", "SIGABRT")]
)
async def test_a_child_that_ends_is_restarted_until_the_budget_is_used_up(tmp_path: Path, end: str, words: str) -> None:
    async with supervising(spec(end, tmp_path), spec(FOREVER, tmp_path, name="b")) as house:
        await house.until(lambda: ChildState.FAILED in house.states())
        running_and_backoff = [ChildState.RUNNING, ChildState.BACKOFF] * QUICK.restarts_max
        assert house.states() == [*running_and_backoff, ChildState.RUNNING, ChildState.FAILED]
        assert words in house.status().ended
        assert house.status().restarts == QUICK.restarts_max
        assert house.status("b").state is ChildState.RUNNING


async def test_a_child_that_has_proved_itself_is_restarted_for_as_long_as_it_takes(tmp_path: Path) -> None:
    async with supervising(spec("raise SystemExit(1)", tmp_path)) as house:
        house.supervisor.proved("")
        await house.until(lambda: house.status().restarts > 2 * QUICK.restarts_max)
        assert ChildState.FAILED not in house.states()


async def test_pauses_grow_up_to_the_cap() -> None:
    policy = RestartPolicy(initial_s=0.5, multiplier=2.0, cap_s=3.0)
    assert [policy.pause_s(n) for n in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


async def test_restarts_of_long_ago_do_not_count(tmp_path: Path) -> None:
    policy = RestartPolicy(initial_s=0.0, restarts_max=1, period_s=0.0)
    async with supervising(spec("", tmp_path), policy=policy) as house:
        await house.until(lambda: house.states().count(ChildState.BACKOFF) >= 3)
        assert house.status().state is not ChildState.FAILED


async def test_an_invalid_file_is_not_tried_again(tmp_path: Path) -> None:
    async with supervising(spec("print('bad file'); raise SystemExit(2)", tmp_path)) as house:
        await house.supervisor.wait()
        assert house.states() == [ChildState.RUNNING, ChildState.FAILED]
        assert house.status().last_lines == ("bad file",)


async def test_a_program_that_is_not_there_uses_up_the_budget(tmp_path: Path) -> None:
    missing = ChildSpec(name="a", command=(str(tmp_path / "nothing"),), folder=tmp_path)
    async with supervising(missing) as house:
        await house.supervisor.wait()
        assert house.status().state is ChildState.FAILED
        assert "cannot start" in house.status().ended


async def test_a_killed_child_comes_back_under_a_new_process(tmp_path: Path) -> None:
    async with supervising(spec(FOREVER, tmp_path)) as house:
        first = house.pid()
        os.kill(first, signal.SIGKILL)
        await house.until(lambda: house.states() == [ChildState.RUNNING, ChildState.BACKOFF, ChildState.RUNNING])
        assert house.pid() != first
        assert house.status().ended == "killed by SIGKILL"


async def test_stop_lets_a_child_end_by_itself(tmp_path: Path) -> None:
    async with supervising(spec(POLITE, tmp_path)) as house:
        await house.until(lambda: "[a] up\n" in house.lines)
        await house.supervisor.stop()
        assert house.lines[-1] == "[a] bye\n"
        assert house.states() == [ChildState.RUNNING, ChildState.STOPPING, ChildState.STOPPED]
        await house.supervisor.wait()


async def test_stop_kills_a_child_that_does_not_end_in_time(tmp_path: Path) -> None:
    async with supervising(spec(STUBBORN, tmp_path), stop_timeout_s=0.1) as house:
        await house.until(lambda: "[a] up\n" in house.lines)
        pid = house.pid()
        await asyncio.wait_for(house.supervisor.stop(), DEADLINE_S)
        assert not alive(pid)
        assert house.status().ended == "killed by SIGKILL"


async def test_kill_shortens_a_stop(tmp_path: Path) -> None:
    async with supervising(spec(STUBBORN, tmp_path), stop_timeout_s=1e6) as house:
        await house.until(lambda: "[a] up\n" in house.lines)
        stopping = asyncio.create_task(house.supervisor.stop())
        await house.until(lambda: ChildState.STOPPING in house.states())
        house.supervisor.kill()
        await asyncio.wait_for(stopping, DEADLINE_S)


async def test_stop_during_the_pause_before_a_restart_starts_nothing(tmp_path: Path) -> None:
    async with supervising(spec("", tmp_path), policy=RestartPolicy(initial_s=1e6, cap_s=1e6)) as house:
        await house.until(lambda: ChildState.BACKOFF in house.states())
        await house.supervisor.stop()
        assert house.states() == [ChildState.RUNNING, ChildState.BACKOFF, ChildState.STOPPED]


async def test_what_a_child_leaves_behind_is_killed(tmp_path: Path) -> None:
    start = f"subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])"
    program = f"import subprocess, sys; print({start}.pid, flush=True); sys.exit(2)"
    async with supervising(spec(program, tmp_path)) as house:
        await house.supervisor.wait()
        left = int(next(line for line in house.lines if "up" not in line).split()[1])
        await eventually(lambda: not alive(left))


async def test_restart_starts_anew_also_what_has_failed(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    program = f"import os, sys\nif not os.path.exists({str(flag)!r}): sys.exit(2)\n{FOREVER}"
    async with supervising(spec(program, tmp_path)) as house:
        await house.supervisor.wait()
        flag.touch()
        await house.supervisor.restart("a")
        await house.until(lambda: "[a] up\n" in house.lines)
        first = house.pid()
        await house.supervisor.restart("a")
        assert house.pid() != first
        assert house.status().restarts == 0
        with pytest.raises(KeyError):
            await house.supervisor.restart("nobody")


async def test_replace_touches_only_what_changed(tmp_path: Path) -> None:
    kept, changed, gone = (spec(FOREVER, tmp_path, name=name) for name in ("kept", "changed", "gone"))
    async with supervising(kept, changed, gone) as house:
        before = {status.name: status.pid for status in house.supervisor.statuses}
        await house.supervisor.replace(
            [kept, spec(POLITE, tmp_path, name="changed"), spec(FOREVER, tmp_path, name="new")]
        )
        after = {status.name: status.pid for status in house.supervisor.statuses}
        assert after.keys() == {"kept", "changed", "new"}
        assert after["kept"] == before["kept"]
        assert after["changed"] != before["changed"]
        assert not alive(before["gone"] or 0)


async def test_two_children_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two children"):
        Supervisor([spec(FOREVER, tmp_path), spec(FOREVER, tmp_path)])


PARENT = """
import asyncio, sys
from pathlib import Path
from llama_deploy.apiserver.supervisor import ChildSpec, Supervisor

async def main() -> None:
    write = lambda line: print(line, end="", flush=True)
    spec = ChildSpec(name="a", command=(sys.executable, "-c", sys.argv[1]), folder=Path(sys.argv[2]))
    supervisor = Supervisor([spec], write=write)
    await supervisor.start()
    await supervisor.wait()

asyncio.run(main())
"""

FAMILY = f"""
import os, subprocess, sys
grandchild = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
grandchild.stdout.readline()
print("pids", os.getpid(), grandchild.pid, flush=True)
{STUBBORN}
"""


async def test_kill_9_of_the_supervisor_leaves_no_process(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, FAMILY, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    words = (await asyncio.wait_for(parent.stdout.readline(), DEADLINE_S)).split()
    assert words[:2] == [b"[a]", b"pids"]
    pids = [int(word) for word in words[2:]]
    assert all(alive(pid) for pid in pids)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not any(alive(pid) for pid in pids))
    while await parent.stdout.read(65536):
        pass


def test_a_child_whose_supervisor_is_gone_exits_before_it_does_anything() -> None:
    program = "from llama_deploy.runtime.lifeline import die_with_supervisor; die_with_supervisor(); print('alive')"
    orphan = {**os.environ, SUPERVISOR_PID: "1"}
    ran = subprocess.run([sys.executable, "-c", program], env=orphan, check=True, capture_output=True, text=True)
    assert ran.stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's rope is Linux's")
async def test_the_kernel_kills_a_child_whose_guard_died_too(tmp_path: Path) -> None:
    tied = "from llama_deploy.runtime.lifeline import die_with_supervisor; die_with_supervisor()"
    program = f"{tied}; import os; print('pids', os.getpid(), flush=True)\n{STUBBORN}"
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    words = (await asyncio.wait_for(parent.stdout.readline(), DEADLINE_S)).split()
    child = int(words[2])
    (guard,) = (pid for pid in children_of(parent.pid) if pid != child)
    os.kill(guard, signal.SIGKILL)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not alive(child))
    while await parent.stdout.read(65536):
        pass


RETIRING = (
    "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: (print('last', flush=True), sys.exit(3)));"
    "import os; os.write(int(os.environ['LLAMA_DEPLOY_READY_DESCRIPTOR']), b'!'); signal.pause()"
)


async def test_a_child_says_that_it_is_ready_and_retires_without_being_started_again(tmp_path: Path) -> None:
    ready = replace(spec(RETIRING, tmp_path), tells_ready=True)
    slow = replace(spec(FOREVER, tmp_path, name="b"), tells_ready=True)
    async with supervising(ready, slow) as house:
        await house.until(lambda: house.status().ready)
        assert not house.status("b").ready
        pids = house.pid(), house.pid("b")
        await asyncio.gather(house.supervisor.retire("a", DEADLINE_S), house.supervisor.remove("a"))
        await house.supervisor.retire("b", DEADLINE_S)  # it holds nothing yet
        assert house.supervisor.statuses == ()
        assert not any(alive(pid) for pid in pids)
        await house.supervisor.remove("a")
        await house.supervisor.retire("a", DEADLINE_S)


async def test_a_child_that_retires_for_too_long_is_ended(tmp_path: Path) -> None:
    deaf = "import signal, os; signal.signal(signal.SIGUSR1, signal.SIG_IGN);" + RETIRING.partition("import os; ")[2]
    async with supervising(replace(spec(deaf, tmp_path), tells_ready=True)) as house:
        await house.until(lambda: house.status().ready)
        await house.supervisor.retire("a", 0.05)
        assert house.status_of_end("a") == "killed by SIGTERM"


async def test_what_outlives_a_child_and_goes_on_printing_keeps_nobody(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    heard: list[str] = []

    def write(line: str) -> None:
        heard.append(line)
        if len(heard) < 1000:
            os.write(writing, b"more\n")

    output = Output(reading, "a", write)
    os.write(writing, b"last words\n")
    output.finish()
    os.close(writing)
    assert heard == ["[a] last words\n"]


async def test_a_child_that_cannot_start_for_want_of_descriptors_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(on_ready: Callable[[], None]) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("llama_deploy.apiserver.child.Ready", none_left)
    before = descriptors()
    told = replace(spec(FOREVER, tmp_path), tells_ready=True)
    with pytest.raises(OSError, match="Too many"):
        ChildProcess.start(told, guard=Guard(), write=print, on_exit=print)
    assert descriptors() == before
