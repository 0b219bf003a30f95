"""Keys that are left out of what people look at, in a deployment that works with their values."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import pytest
from tests.support import eventually

from llama_deploy import Deployment, NonRetryableError, service
from llama_deploy.cli.app import run_command
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services import HumanService
from llama_deploy.types import TaskOptions

SECRET = "hunter2-is-secret"


@service
async def login(user: str, password: str) -> dict[str, Any]:
    """Needs the real password."""
    assert password == SECRET
    return {"user": user, "session": {"api_token": SECRET}}


@service
async def fail(password: str) -> None:
    """Says too much."""
    raise NonRetryableError(f"cannot log in with password={password}")


def _shown(documents: list[Any]) -> str:
    return "\n".join(document.model_dump_json() for document in documents)


async def test_services_and_results_have_the_value_and_people_do_not() -> None:
    redact = ["*password*", "*_token"]
    async with Deployment(
        [login, fail, HumanService("clerk")], store=":memory:", quiet=True, redact=redact
    ) as deployment:
        client = deployment.client
        task_id = await client.submit("login", user="ada", password=SECRET)
        assert await client.result(task_id) == {"user": "ada", "session": {"api_token": SECRET}}
        failed = await client.submit("fail", password=SECRET)
        assert (await client.wait(failed)).status == "failed"
        asked = await client.submit("clerk", input={"password": SECRET, "case": 7})
        async for entry in client.history(asked, follow=True):
            if entry.kind == "input_requested":
                break
        for one in (task_id, failed, asked):
            entries = [entry async for entry in client.history(one, follow=one != asked)] if one != asked else []
            page = await client._ask("GET", f"/v1/tasks/{one}/history")
            assert SECRET not in _shown(entries)
            assert SECRET not in str(page), page
            assert "[redacted]" in str(page)
        assert "ada" in str(await client._ask("GET", f"/v1/tasks/{task_id}/history"))
        view = await client.get_task(asked)
        assert SECRET not in view.model_dump_json()
        assert (await client.status())["redact"] == redact


@service(process=True)
def fails_apart(password: str) -> None:
    """Says too much, in a process of its own."""
    sys.stderr.write(f'{{"password": "{password}"}}\n')
    raise ValueError(f"cannot log in with password={password}")


@pytest.mark.parametrize("apart", [False, True], ids=["in this process", "in a worker process"])
async def test_logs_have_no_such_values_either(caplog: pytest.LogCaptureFixture, *, apart: bool) -> None:
    caplog.set_level(logging.INFO, "llama_deploy")
    before = logging.getLogger("llama_deploy").propagate
    logging.getLogger("llama_deploy").propagate = True
    try:
        async with Deployment([fail, fails_apart], store=":memory:", quiet=True, redact=["*password*"]) as deployment:
            options = TaskOptions.model_validate({"retry": {"max_retries": 0}})
            name = "fails_apart" if apart else "fail"
            task_id = await deployment.client.submit(name, input={"password": SECRET}, options=options)
            assert (await deployment.client.wait(task_id)).status == "failed"
            await eventually(lambda: ("stream=stderr" if apart else "attempt failed") in caplog.text)
            fell = ValueError(f"my_password={SECRET}")
            get_logger("llama_deploy.test").exception("it fell", exc_info=fell, user="ada")
        assert SECRET not in caplog.text
        assert "my_password=[redacted]\n" in caplog.text
        said = '"password": [redacted]}' if apart else "NonRetryableError: cannot log in with password=[redacted]\n"
        assert said in caplog.text
        assert "user=ada" in caplog.text
        get_logger("llama_deploy.test").warning(f"password={SECRET}")
        assert SECRET in caplog.text, "nobody asks for it any more"
    finally:
        logging.getLogger("llama_deploy").propagate = before


async def test_without_patterns_nothing_is_left_out() -> None:
    async with Deployment([login], store=":memory:", quiet=True) as deployment:
        task_id = await deployment.submit("login", user="ada", password=SECRET)
        await deployment.client.result(task_id)
        assert SECRET in _shown([entry async for entry in deployment.client.history(task_id)])


async def test_the_command_line_shows_results_and_errors_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    async with Deployment(
        [login, fail], store=":memory:", port=0, quiet=True, redact=["*password*", "*_token"]
    ) as made:
        done = await made.submit("login", user="ada", password=SECRET)
        failed = await made.submit("fail", password=SECRET)
        for task_id in (done, failed):
            await made.client.wait(task_id)
            for form in ("text", "wide", "json", "jsonl"):
                for command in ("get", "watch"):
                    words = ["tasks", command, task_id, "-s", made.url, "-o", form]
                    code = await asyncio.to_thread(run_command, words)
                    shown = "".join(capsys.readouterr())
                    assert code == (1 if command == "watch" and task_id == failed else 0), shown
                    assert SECRET not in shown, words
                    assert "[redacted]" in shown, words
        assert (await made.client.result(done))["session"]["api_token"] == SECRET
