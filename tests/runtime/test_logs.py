"""Logs: an event and its pairs on one line, tracebacks below it, and the level and place that `logging` knows."""

from __future__ import annotations

import logging

import pytest

from llama_deploy.runtime.logs import configure, get_logger, leave_out

log = get_logger("llama_deploy.test")


def test_an_event_and_its_pairs_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("something odd", step_id="a:1", seconds=1.5)
    log.warning("nothing more to say: 100 %")
    assert caplog.messages == ["something odd  step_id=a:1 seconds=1.5", "nothing more to say: 100 %"]
    record = caplog.records[0]
    assert (record.name, record.levelname, record.funcName) == (
        "llama_deploy.test",
        "WARNING",
        "test_an_event_and_its_pairs_are_one_line",
    )


def test_what_is_below_the_level_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    log.info("quiet")
    caplog.set_level(logging.INFO, logger="llama_deploy.test")
    log.info("loud")
    assert caplog.messages == ["loud"]


def test_lines_pass_all_who_leave_something_out_for_as_long_as_they_want(caplog: pytest.LogCaptureFixture) -> None:
    class Owner:
        pass

    one, two = Owner(), Owner()
    leave_out(one, lambda text: text.replace("one", "[1]"))
    leave_out(two, lambda text: text.replace("two", "[2]"))
    log.warning("one and two")
    leave_out(one, None)
    log.error("one and two", exc_info=ValueError("two again"))
    del two
    log.warning("one and two")
    messages = [message.splitlines() for message in caplog.messages]
    assert messages[0] == ["[1] and [2]"]
    assert (messages[1][0], messages[1][-1]) == ("one and [2]", "ValueError: [2] again")
    assert messages[2] == ["one and two"]


def test_failures_bring_their_traceback(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("given")
    log.error("failed", exc_info=error)
    log.error("failed without one")
    try:
        int("no number")
    except ValueError:
        log.exception("failed", path="/")
        log.exception("failed", exc_info=error)
    shown = [str(record.exc_info[1]) if record.exc_info else "" for record in caplog.records]
    assert shown == ["given", "", "invalid literal for int() with base 10: 'no number'", "given"]


def test_a_traceback_from_elsewhere_stands_below(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("attempt failed", exception="Traceback\nValueError", attempt=1)
    assert caplog.messages == ["attempt failed  attempt=1\nTraceback\nValueError"]


def test_shown_lines_have_their_time_in_utc(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("llama_deploy")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr("time.time", lambda: 1_795_357_895.25)
    monkeypatch.setattr("time.localtime", lambda *_: pytest.fail("a log is in UTC"))
    configure("INFO")
    logging.getLogger("llama_deploy.test").info("something happened")
    assert capsys.readouterr().err == "2026-11-22T14:31:35.250Z INFO    llama_deploy.test: something happened\n"
