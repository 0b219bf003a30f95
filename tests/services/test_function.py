"""Functions as services: decorating, calling, streaming, threads, cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel
from tests.services.attempts import Attempt
from tests.support import DEADLINE_S, eventually

from llama_deploy.errors import ArgumentsError, ResultNotSerialisableError, SettingError
from llama_deploy.services import FunctionService, Service, ServiceContext, as_service, service
from llama_deploy.types import RetryPolicy


class Order(BaseModel):
    number: int


@service
async def shout(text: str) -> str:
    """Say it loud.

    And clear.
    """
    return text.upper()


@service(name="adder", description="Adds.", concurrency=2, run_timeout_s=5, retry=RetryPolicy(max_retries=1))
def add(a: int, b: int = 1) -> int:
    return a + b


async def test_an_async_function() -> None:
    result = await shout.run(Attempt({"text": "hi"}))
    assert (result.kind, result.result) == ("text", "HI")


async def test_a_plain_function_runs_in_a_thread_of_its_own() -> None:
    @service
    def where() -> str:
        return threading.current_thread().name

    result = await where.run(Attempt())
    await where.stop()
    assert result.result.startswith("where-")


async def test_the_decorated_function_is_still_the_function() -> None:
    assert await shout("a") == "A"
    assert add(1, b=2) == 3
    assert inspect.signature(shout) == inspect.signature(shout.function)
    assert isinstance(add, Service)


def test_the_definition_says_what_the_signature_says() -> None:
    definition = shout.definition
    assert (definition.service_name, definition.kind, definition.description) == ("shout", "function", "Say it loud.")
    assert definition.input_schema is not None
    assert definition.input_schema["required"] == ["text"]
    assert definition.output_schema == {"type": "string"}
    configured = add.definition
    assert (configured.service_name, configured.description, configured.concurrency) == ("adder", "Adds.", 2)
    assert configured.run_timeout_s == 5.0
    assert configured.retry is not None
    assert configured.retry.max_retries == 1


def test_what_is_not_annotated_has_an_empty_schema() -> None:
    @service
    def f(x): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

    assert f.definition.output_schema == {}


async def test_a_value_that_is_not_text() -> None:
    result = await add.run(Attempt({"a": 1, "b": 2}))
    assert (result.kind, result.value, result.result) == ("json", 3, "3")


async def test_input_that_does_not_fit_never_reaches_the_function() -> None:
    called = []

    @service
    async def f(n: int) -> None:
        called.append(n)

    with pytest.raises(ArgumentsError):
        await f.run(Attempt({"n": "x"}))
    assert called == []


async def test_a_result_without_a_json_form() -> None:
    @service
    async def f() -> Any:
        return object()

    with pytest.raises(ResultNotSerialisableError):
        await f.run(Attempt())


async def test_the_context() -> None:
    @service
    async def f(text: str, context: ServiceContext) -> str:
        context.stream({"half": text})
        return f"{context.step_id}/{context.attempt}"

    attempt = Attempt("hi", number=2)
    assert (await f.run(attempt)).result == "task:1/2"
    assert attempt.events == [{"half": "hi"}]


async def test_asking_a_person() -> None:
    @service
    async def f(context: ServiceContext) -> str:
        return f"you said {await context.ask('ready?', schema={'type': 'string'})}"

    attempt = Attempt()
    running = asyncio.create_task(f.run(attempt))
    await eventually(lambda: attempt.asked)
    assert attempt.asked == [{"prompt": "ready?", "schema": {"type": "string"}}]
    attempt.inputs.put_nowait("yes")
    assert (await running).result == "you said yes"


async def test_answers_of_an_earlier_attempt_are_not_asked_for_again() -> None:
    @service
    async def f(context: ServiceContext) -> list[str]:
        return [await context.ask("one"), await context.ask("two")]

    attempt = Attempt(inputs=["1", "2"])
    assert (await f.run(attempt)).value == ["1", "2"]
    assert attempt.asked == []


async def test_an_async_generator_streams_and_returns_the_list() -> None:
    @service
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    attempt = Attempt("3")
    assert (await count.run(attempt)).value == [0, 1, 2]
    assert attempt.events == [0, 1, 2]
    assert count.definition.output_schema == {"type": "array", "items": {"type": "integer"}}


async def test_a_generator_streams_from_its_thread_and_may_return_a_value() -> None:
    @service
    def tell(n: int) -> Generator[str, None, str]:
        for i in range(n):
            yield f"part {i}"
        return "the end"

    attempt = Attempt("2")
    assert (await tell.run(attempt)).result == "the end"
    await tell.stop()
    assert attempt.events == ["part 0", "part 1"]


async def test_an_event_without_a_json_form_ends_a_generator() -> None:
    closed = threading.Event()

    @service
    def f() -> Iterator[Any]:
        try:
            yield object()
        finally:
            closed.set()

    with pytest.raises(ResultNotSerialisableError):
        await f.run(Attempt())
    await f.stop()
    assert closed.is_set()


async def test_a_function_that_hands_out_a_coroutine() -> None:
    async def real(n: int) -> int:
        return n

    wrapped = service(name="wrapped")(lambda n: real(n))  # noqa: PLW0108 - it hides that `real` is async
    assert (await wrapped.run(Attempt("3"))).value == 3
    await wrapped.stop()


async def test_context_variables_reach_the_thread() -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")

    @service
    def f() -> str:
        return who.get()

    who.set("me")
    assert (await f.run(Attempt())).result == "me"
    await f.stop()


async def test_cancelling_a_coroutine() -> None:
    ended = asyncio.Event()

    @service
    async def f() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(f.run(Attempt()))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_a_thread_sees_that_it_is_cancelled_and_gives_its_place_back() -> None:
    seen, go = threading.Event(), threading.Event()

    @service(concurrency=1)
    def f(context: ServiceContext, wait: bool) -> str:
        if wait:
            go.set()
            while not context.canceled:
                threading.Event().wait(0.001)
            seen.set()
        return "done"

    running = asyncio.create_task(f.run(Attempt({"wait": True})))
    await eventually(go.is_set)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await f.run(Attempt({"wait": False}))).result == "done"
    await eventually(seen.is_set)
    await f.stop()


async def test_no_more_threads_than_the_concurrency() -> None:
    lock, now, most = threading.Lock(), [0], [0]
    both = threading.Barrier(2)

    @service(concurrency=2)
    def f() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        both.wait(DEADLINE_S)
        with lock:
            now[0] -= 1

    await asyncio.gather(*(f.run(Attempt()) for _ in range(8)))
    await f.stop()
    assert most[0] == 2


def test_a_type_that_the_module_defines_further_down() -> None:
    module = ModuleType("later_module")
    sys.modules["later_module"] = module
    source = """
from __future__ import annotations
from llama_deploy.services import service
@service
async def f(value: Later) -> Later:
    return value
class Later:
    pass
from pydantic import BaseModel
class Later(BaseModel):
    n: int
"""
    try:
        exec(source, vars(module))
        made = as_service(module.f)
        assert made.definition.input_schema is not None
        assert "Later" in made.definition.input_schema["$defs"]
    finally:
        del sys.modules["later_module"]


async def test_a_type_that_is_local_to_a_function() -> None:
    class Local(BaseModel):
        n: int

    @service
    async def f(value: Local) -> Local:
        return value

    assert (await f.run(Attempt({"value": {"n": 1}}))).value == {"n": 1}


def test_what_cannot_be_a_service() -> None:
    with pytest.raises(SettingError, match="no name"):
        service(lambda: None)
    with pytest.raises(SettingError, match="parts"):

        @service
        def f(*parts: str) -> None: ...

    with pytest.raises(SettingError, match="cannot be a service"):
        as_service(3)
    with pytest.raises(SettingError, match="is a class"):
        as_service(FunctionService)


def test_as_service() -> None:
    def plain(n: int) -> int:
        return n

    assert as_service(shout) is shout
    assert as_service(plain).definition.service_name == "plain"
    renamed = as_service(shout, name="loud", concurrency=3)
    assert (renamed.definition.service_name, renamed.definition.concurrency) == ("loud", 3)
    assert shout.definition.service_name == "shout"
    assert as_service(functools.partial(plain, 3), name="three").definition.service_name == "three"


async def test_two_services_of_one_function_have_their_own_threads() -> None:
    first, second = as_service(add, name="first"), as_service(add, name="second")
    await first.start()
    await second.start()
    await first.stop()
    result = await second.run(Attempt({"a": 1}))
    await second.stop()
    assert getattr(result, "value", None) == 2


async def test_a_message_that_is_not_a_task_gives_its_data_as_arguments() -> None:
    assert (await shout.run(Attempt(action="completed_tool_call", data={"text": "hi"}))).result == "HI"


async def test_a_notification_of_the_end_of_a_task() -> None:
    @service
    async def human(outcome: dict[str, Any]) -> str:
        return str(outcome["result"])

    data = {"task_id": "t", "history": [], "result": "done"}
    assert (await human.run(Attempt(action="completed_task", data=data))).result == "done"


async def test_an_error_names_the_given_name_of_the_service() -> None:
    with pytest.raises(ArgumentsError, match="`adder`"):
        await add.run(Attempt({"c": 1}))
