"""A person as a service: asked, answering, told of the end."""

from __future__ import annotations

import logging
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from tests.services.attempts import Attempt

from llama_deploy.errors import SettingError
from llama_deploy.services import HumanService, Parked
from llama_deploy.types import TaskResult

OUTCOME = {"task_id": "task", "history": [], "result": "42", "status": "completed"}


class Review(BaseModel):
    good: bool
    words: str = ""


async def test_a_task_waits_for_the_person_and_their_input_is_the_answer() -> None:
    parked = await HumanService().run(Attempt("is it good?"))
    assert parked == Parked(prompt={"prompt": "is it good?"}, resume="answer")


async def test_the_prompt_may_frame_the_input() -> None:
    parked = await HumanService(prompt="Check {input}, please {exactly}.").run(Attempt("this"))
    assert isinstance(parked, Parked)
    assert parked.prompt["prompt"] == "Check this, please {exactly}."


async def test_a_message_that_is_no_task_is_shown_as_it_is() -> None:
    parked = await HumanService().run(Attempt(action="request_for_help", data={"why": "stuck"}))
    assert isinstance(parked, Parked)
    assert parked.prompt["prompt"] == '{"why": "stuck"}'


async def test_an_answer_of_a_type() -> None:
    human = HumanService(answer=Review)
    parked = await human.run(Attempt("read it"))
    assert isinstance(parked, Parked)
    assert (parked.resume, parked.consumed) == ("redeliver", 0)
    assert parked.prompt["schema"]["required"] == ["good"]
    result = await human.run(Attempt("read it", inputs=[{"good": "yes"}], snapshot=parked.snapshot))
    assert isinstance(result, TaskResult)
    assert result.value == {"good": True, "words": ""}


async def test_an_answer_that_does_not_fit_is_asked_for_again() -> None:
    human = HumanService(answer=Literal["yes", "no"])
    parked = await human.run(Attempt("sure?", inputs=["maybe"]))
    assert isinstance(parked, Parked)
    assert parked.consumed == 1
    assert "'yes' or 'no'" in parked.prompt["problem"]
    result = await human.run(Attempt("sure?", inputs=["maybe", "no"]))
    assert isinstance(result, TaskResult)
    assert result.result == "no"


def test_an_answer_type_without_a_json_form() -> None:
    with pytest.raises(SettingError, match="answer type"):
        HumanService(answer=threading_lock())


async def test_the_end_of_a_task_is_told() -> None:
    told: list[TaskResult] = []

    async def notify(outcome: TaskResult) -> None:
        told.append(outcome)

    for how in (notify, told.append):
        human = HumanService(notify=how)
        result = await human.run(Attempt(action="completed_task", data=OUTCOME))
        await human.stop()
        assert isinstance(result, TaskResult)
        assert result.result == "42"
    assert [outcome.result for outcome in told] == ["42", "42"]


async def test_what_notify_raises_is_the_steps_failure() -> None:
    async def notify(outcome: TaskResult) -> None:
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        await HumanService(notify=notify).run(Attempt(action="completed_task", data=OUTCOME))


async def test_without_notify_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await HumanService().run(Attempt(action="completed_task", data=OUTCOME))
    assert "task task of session session has completed" in caplog.text


def threading_lock() -> Any:
    import threading

    return type(threading.Lock())


async def test_a_task_that_failed_is_told_once() -> None:
    """The person was told: that went well, however the task ended."""
    told: list[TaskResult] = []
    human = HumanService(notify=told.append)
    failed = {**OUTCOME, "status": "failed", "error": {"message": "no"}}
    result = await human.run(Attempt(action="completed_task", data=failed))
    await human.stop()
    assert isinstance(result, TaskResult)
    assert (result.status, told[0].status) == ("completed", "failed")
