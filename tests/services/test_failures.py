"""An exception of user code becomes an error that says what, whether to try again, and where in the user's code."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.attempts import Attempt

from llama_deploy.errors import (
    ArgumentsError,
    NonRetryableError,
    ResultNotSerialisableError,
    RunTimeoutError,
    SettingError,
    TaskFailed,
    ToolUnknownError,
)
from llama_deploy.services import error_from_exception, service
from llama_deploy.services.failures import MESSAGE_CHARS_MAX, TRACEBACK_CHARS_MAX


def raised(exc: BaseException) -> BaseException:
    try:
        raise exc  # noqa: TRY301
    except BaseException as caught:  # noqa: BLE001
        return caught


def test_a_plain_exception() -> None:
    error = error_from_exception(raised(ValueError("bad number")))
    assert (error.code, error.type, error.message) == ("LD502", "ValueError", "bad number")
    assert error.retryable
    assert error.retry_after_s is None
    assert error.traceback is not None
    assert error.traceback.endswith("ValueError: bad number\n")


def test_an_exception_without_a_message_says_so() -> None:
    assert error_from_exception(raised(ValueError())).message == "(no message)"


@pytest.mark.parametrize(
    ("exc", "code", "retryable"),
    [
        (NonRetryableError("no"), "LD510", False),
        (ArgumentsError("no"), "LD505", False),
        (ToolUnknownError("no"), "LD509", False),
        (ResultNotSerialisableError("no"), "LD504", False),
        (SettingError("no"), "LD104", False),
        (RunTimeoutError("slow"), "LD503", True),
        (TaskFailed("elsewhere"), "LD501", True),
    ],
)
def test_errors_of_this_package_keep_their_code(exc: Exception, code: str, retryable: bool) -> None:
    error = error_from_exception(exc)
    assert (error.code, error.retryable) == (code, retryable)


def test_the_fix_is_recorded_apart_from_the_message() -> None:
    error = error_from_exception(ArgumentsError("no", why="too short", fix="do this"))
    assert (error.message, error.fix) == ("no (too short)", "do this")


def test_an_exception_may_speak_for_itself() -> None:
    class BusyError(Exception):
        retry_after_s = 7

    class WrongError(Exception):
        retryable = False

    assert error_from_exception(BusyError()).retry_after_s == 7.0
    assert not error_from_exception(WrongError()).retryable


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "3", True, None])
def test_a_useless_retry_after_is_ignored(value: Any) -> None:
    exc = ValueError()
    exc.retry_after_s = value  # type: ignore[attr-defined]
    assert error_from_exception(exc).retry_after_s is None


async def test_the_traceback_shows_the_users_code_and_not_ours() -> None:
    def deep(n: int) -> int:
        return 1 // n

    @service
    def divide(n: int) -> int:
        return deep(n)

    with pytest.raises(ZeroDivisionError) as caught:
        await divide.run(Attempt("0"))
    await divide.stop()
    text = error_from_exception(caught.value).traceback
    assert text is not None
    assert "in deep" in text
    assert "in divide" in text
    assert "llama_deploy/services" not in text
    assert "threading.py" not in text


def test_causes_are_shown() -> None:
    try:
        try:
            raise KeyError("inner")  # noqa: TRY301
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        text = error_from_exception(error).traceback
    assert text is not None
    assert "KeyError: 'inner'" in text


def test_messages_and_tracebacks_are_bounded() -> None:
    def recurse(n: int) -> int:
        return recurse(n + 1) if n % 2 else other(n + 1)

    def other(n: int) -> int:
        return recurse(n + 1) + 1

    with pytest.raises(RecursionError) as caught:
        recurse(0)
    assert len(error_from_exception(caught.value).traceback or "") <= TRACEBACK_CHARS_MAX
    assert len(error_from_exception(ValueError("x" * 10**6)).message) <= MESSAGE_CHARS_MAX


def test_exceptions_that_cannot_be_shown() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    error = error_from_exception(raised(BrokenError()))
    assert error.type.endswith("BrokenError")
    assert error.model_dump_json()
    assert error_from_exception(ValueError("\ud800")).model_dump_json()
    assert error_from_exception(SystemExit(3)).type == "SystemExit"
    assert error_from_exception(ExceptionGroup("two", [ValueError("a"), KeyError("b")])).type == "ExceptionGroup"
