"""A command line program as a service: one run per attempt, input on stdin or in its arguments, output from stdout.

No shell is involved. A run that is canceled, or past its deadline, gets SIGTERM with all that it started, and SIGKILL
after a grace; nothing of it is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llama_deploy.errors import ArgumentsError, NonRetryableError, ServiceRaisedError, SettingError
from llama_deploy.runtime.programs import end_program, signal_name, start_program
from llama_deploy.services.base import Service, StepContext
from llama_deploy.services.results import result_from_value
from llama_deploy.types import ServiceDefinition, TaskResult

STDERR_CHARACTERS = 2_000
"""How much of the end of stderr an error tells."""
LINE_BYTES_MAX = 1_048_576
"""The longest line that is streamed."""
_PLACE = re.compile(r"\{(\w+)\}")


class ProgramService(Service):
    """Runs `command` for each step. `ProgramService("count", ["wc", "-w"])` counts the words of its input.

    The step's input is written to stdin: text as it is, arguments as a JSON object. A part of the command such as
    `{lang}` is replaced by that argument, as one word. stdout is the result: text without the line end at its end, or
    with `output="json"` a JSON value; with `stream=True` each line is a stream event as well. An exit code that is not
    0 is a failure that is tried again, unless it is one of `final_exit_codes`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        description: str = "",
        output: Literal["text", "json"] = "text",
        stream: bool = False,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        final_exit_codes: Sequence[int] = (2, 126, 127),
        kill_after_s: float = 5.0,
        concurrency: int = 4,
        run_timeout_s: float = 600.0,
    ) -> None:
        if isinstance(command, str) or not command:
            raise SettingError("a command is a list of words", fix='write ["wc", "-w"]; no shell reads it')
        self.command = list(command)
        self.output = output
        self.stream = stream
        self.cwd = cwd
        self.env = dict(env or {})
        self.final_exit_codes = frozenset(final_exit_codes)
        self.kill_after_s = kill_after_s
        places = list(dict.fromkeys(place for word in self.command for place in _PLACE.findall(word)))
        self.definition = ServiceDefinition(
            service_name=name,
            description=description or " ".join(self.command),
            kind="other",
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
            input_schema={
                "type": "object",
                "properties": {place: {"type": "string"} for place in places},
                "required": places,
            },
        )

    async def run(self, context: StepContext) -> TaskResult:
        """One run of the program."""
        given = context.arguments
        words = [_PLACE.sub(lambda match: _word(given, match[1]), word) for word in self.command]
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        try:
            process = await start_program(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.cwd,
                env={**os.environ, **self.env, "LLAMA_DEPLOY_STEP_ID": context.step_id},
                limit=LINE_BYTES_MAX,
            )
        except (OSError, ValueError) as error:
            raise NonRetryableError(f"{words[0]} cannot be started", why=str(error)) from error
        try:
            stdout, stderr = await self._talk(process, text.encode(), context)
        finally:
            await self._end(process)
        if process.returncode:
            raise self._failed(words[0], process.returncode, stderr)
        return self._result(words[0], stdout)

    async def _talk(
        self, process: asyncio.subprocess.Process, text: bytes, context: StepContext
    ) -> tuple[bytes, bytes]:
        if not self.stream:
            return await process.communicate(text)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(process.stderr.read())
        writing = asyncio.create_task(_write(process.stdin, text))
        lines = []
        try:
            async for line in process.stdout:
                lines.append(line)
                context.stream(line.decode(errors="replace").rstrip("\n"))
            await process.wait()
            return b"".join(lines), await errors
        finally:
            errors.cancel()
            writing.cancel()
            await asyncio.gather(errors, writing, return_exceptions=True)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """See to it that nothing of the program is left, whatever made it end; who is cancelled here cannot wait."""
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.kill_after_s):
                        await process.wait()
        finally:
            await end_program(process)  # and what it has started

    def _failed(self, word: str, exit_code: int, stderr: bytes) -> Exception:
        how = f"was killed by {signal_name(-exit_code)}" if exit_code < 0 else f"ended with exit code {exit_code}"
        tail = stderr.decode(errors="replace").strip()[-STDERR_CHARACTERS:]
        if exit_code in self.final_exit_codes:
            return NonRetryableError(f"{word} {how}", why=tail)
        return ServiceRaisedError(f"{word} {how}", why=tail)

    def _result(self, word: str, stdout: bytes) -> TaskResult:
        text = stdout.decode(errors="replace")
        if self.output == "text":
            return result_from_value(text.removesuffix("\n"))
        try:
            return result_from_value(json.loads(text))
        except ValueError as error:
            raise NonRetryableError(f"{word} printed no JSON", why=f"{error}: {text[:200]!r}") from error


async def _write(stdin: asyncio.StreamWriter, text: bytes) -> None:
    """Give the program its input; one that does not read it is no failure."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(text)
        await stdin.drain()
    stdin.close()


def _word(given: Any, name: str) -> str:
    if not isinstance(given, dict) or name not in given:
        known = ", ".join(given) if isinstance(given, dict) else "text alone"
        raise ArgumentsError(f"the input has no `{name}`", why=f"it has: {known or 'nothing'}")
    value = given[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
