"""LangGraph graphs as services: input, output, streams, and interrupts that wait for a person."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel
from tests.services.agents.subjects_langgraph import Mark, chat, letters
from tests.services.attempts import Attempt
from tests.support import eventually
from typing_extensions import TypedDict

from llama_deploy.errors import ArgumentsError, NonRetryableError, ServiceRaisedError, SettingError
from llama_deploy.services import LangGraphService, Parked, as_service
from llama_deploy.types import TaskResult


class Text(TypedDict, total=False):
    text: str


async def finish(graph: Any, *given: Any, **attempt: Any) -> tuple[TaskResult, Attempt]:
    made = Attempt(*given, **attempt)
    result = await as_service(graph).run(made)
    assert isinstance(result, TaskResult)
    return result, made


async def park(graph: Any, *given: Any, **attempt: Any) -> Parked:
    parked = await as_service(graph).run(Attempt(*given, **attempt))
    assert isinstance(parked, Parked)
    return parked


def one_node(node: Any, state: Any = Text) -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(state)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph


def test_a_compiled_graph_is_a_service() -> None:
    service = as_service(letters().compile(name="letters"))
    assert isinstance(service, LangGraphService)
    assert (service.definition.service_name, service.definition.kind) == ("letters", "agent")
    assert "topic" in (service.definition.input_schema or {})["properties"]
    with pytest.raises(SettingError, match="not compiled"):
        as_service(letters())


async def test_a_state_goes_in_and_the_final_state_comes_out() -> None:
    graph = one_node(lambda state: {"text": state["text"].upper()}).compile()
    result, attempt = await finish(graph, {"text": "hi"})
    assert result.value == {"text": "HI"}
    assert attempt.events == [{"type": "node", "node": "node", "update": {"text": "HI"}}]


async def test_text_goes_into_the_only_field() -> None:
    graph = one_node(lambda state: {"text": state["text"].upper()}).compile()
    result, _ = await finish(graph, "hi")
    assert result.value == {"text": "HI"}
    with pytest.raises(ArgumentsError, match="fields of its state"):
        await as_service(letters().compile()).run(Attempt("hi"))


async def test_text_becomes_a_message() -> None:
    result, attempt = await finish(chat(), "hi")
    assert [message["content"] for message in result.value["messages"]] == ["hi", "HI"]
    assert {"type": "text", "text": "HI", "node": "echo"} in attempt.events
    again, _ = await finish(chat(), {"messages": [*result.value["messages"], {"role": "user", "content": "you"}]})
    assert [message["content"] for message in again.value["messages"]] == ["hi", "HI", "you", "YOU"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [("text", "HI"), (lambda state: {"n": len(state["text"])}, {"n": 2}), (None, {"text": "HI"})],
)
async def test_a_part_of_the_state_as_output(output: Any, expected: Any) -> None:
    service = LangGraphService(one_node(lambda state: {"text": state["text"].upper()}).compile(), output=output)
    result = await service.run(Attempt("hi"))
    assert isinstance(result, TaskResult)
    assert result.output == expected


async def test_words_of_models_are_streamed_and_tokens_counted() -> None:
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    reply = AIMessage("high tide", usage_metadata=usage, response_metadata={"model_name": "fake"})
    model = GenericFakeChatModel(messages=iter([reply, reply]))

    async def ask(state: MessagesState) -> dict[str, Any]:
        get_stream_writer()({"progress": 1})
        return {"messages": [await model.ainvoke(state["messages"])]}

    result, attempt = await finish(one_node(ask, MessagesState).compile(), "when?")
    told = [event for event in attempt.events if event["type"] == "text"]
    assert "".join(event["text"] for event in told) == "high tide"
    assert {event["node"] for event in told} == {"node"}
    assert {"type": "custom", "data": {"progress": 1}} in attempt.events
    assert result.data == {}, "the fake model says nothing of its usage when it streams"

    whole = GenericFakeChatModel(messages=iter([reply, reply]), disable_streaming=True)

    async def ask_twice(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await whole.ainvoke("one"), await whole.ainvoke("two")]}

    result, _ = await finish(one_node(ask_twice, MessagesState).compile(), "when?")
    assert result.data["usage"] == {"tokens": 14, "input_tokens": 6, "output_tokens": 8}


async def test_interrupts_wait_and_go_on_elsewhere() -> None:
    ran: list[str] = []

    def graph() -> Any:
        return letters(ran.append).compile(name="letters")

    given = {"topic": "tides"}
    first = await park(graph(), given)
    assert (first.prompt["prompt"], first.consumed) == ("first: how many points?", 0)
    second = await park(graph(), given, inputs=[3], snapshot=first.snapshot)
    assert (second.prompt["prompt"], second.consumed) == ("second: how many points?", 1)
    assert second.snapshot == first.snapshot, "nothing runs before both have answered"
    third = await park(graph(), given, inputs=[3, 4], snapshot=second.snapshot)
    assert (third.prompt["prompt"], third.consumed) == ("To whom?", 2)
    result, _ = await finish(graph(), given, inputs=[3, 4, "Ann"], snapshot=third.snapshot)
    assert result.value["sent"] == "about tides to Ann (7)"
    assert result.value["draft"] == {"words": "about tides"}
    assert ran == ["write", "send", "send"], "a node that asks is begun again, no other"


async def test_an_attempt_after_a_crash_goes_on_from_the_same_snapshot() -> None:
    graph = letters().compile()
    first = await park(graph, {"topic": "tides"})
    for number in (2, 3):
        third = await park(graph, {"topic": "tides"}, inputs=[3, 4], snapshot=first.snapshot, number=number)
        assert third.prompt["prompt"] == "To whom?"


async def test_interrupts_within_a_graph_within_a_graph() -> None:
    inner = one_node(lambda state: {"text": state["text"] + interrupt("inside?")}).compile()
    middle = one_node(inner)
    middle.add_node("after", lambda state: {"text": state["text"] + interrupt("after?")})
    middle.add_edge("node", "after")
    graph = one_node(middle.compile()).compile()
    first = await park(graph, {"text": "a"})
    assert first.prompt["prompt"] == "inside?"
    second = await park(graph, {"text": "a"}, inputs=["b"], snapshot=first.snapshot)
    assert second.prompt["prompt"] == "after?"
    result, _ = await finish(graph, {"text": "a"}, inputs=["b", "c"], snapshot=second.snapshot)
    assert result.value == {"text": "abc"}


class Vote(BaseModel):
    points: int


async def test_an_answer_that_does_not_fit_is_asked_for_again() -> None:
    graph = one_node(lambda _: {"text": str(interrupt("points?", response_schema=Vote).points)}).compile()
    parked = await park(graph, {})
    assert parked.prompt["schema"]["properties"]["points"]["type"] == "integer"
    again = await park(graph, {}, inputs=[{"points": "many"}], snapshot=parked.snapshot)
    assert "valid integer" in again.prompt["problem"]
    result, _ = await finish(graph, {}, inputs=[{"points": "many"}, {"points": 3}], snapshot=again.snapshot)
    assert result.value == {"text": "3"}


async def test_places_where_a_graph_is_compiled_to_stop() -> None:
    graph = one_node(lambda state: {"text": state["text"].upper()}).compile(interrupt_before=["node"])
    parked = await park(graph, {"text": "a"})
    assert parked.prompt["prompt"] == "The graph stands before node. Go on?"
    result, _ = await finish(graph, {"text": "a"}, inputs=[True], snapshot=parked.snapshot)
    assert result.value == {"text": "A"}
    with pytest.raises(NonRetryableError, match="stopped the graph before node"):
        await as_service(graph).run(Attempt({"text": "a"}, inputs=[False], snapshot=parked.snapshot))


async def test_a_checkpointer_in_memory_makes_no_difference() -> None:
    graph = letters().compile(checkpointer=InMemorySaver())
    first = await park(graph, {"topic": "tides"})
    third = await park(letters().compile(), {"topic": "tides"}, inputs=[3, 4], snapshot=first.snapshot)
    assert third.prompt["prompt"] == "To whom?"


async def test_a_checkpointer_of_its_own_keeps_what_a_dead_attempt_has_done() -> None:
    """With `thread`, an attempt goes on from the last checkpoint, and a new step begins anew on the same thread."""
    ran: list[str] = []
    broken = [True]
    graph = StateGraph(Text)

    def first(state: Text) -> Text:
        ran.append("first")
        return {"text": state["text"] + "1"}

    def second(state: Text) -> Text:
        if broken.pop() if broken else False:
            raise OSError("the power is out")
        return {"text": state["text"] + str(interrupt("which?"))}

    graph.add_node("first", first)
    graph.add_node("second", second)
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    graph.add_edge("second", END)
    service = LangGraphService(graph.compile(checkpointer=InMemorySaver()), thread=lambda context: context.session_id)
    with pytest.raises(OSError, match="power"):
        await service.run(Attempt({"text": "a"}))
    parked = await service.run(Attempt({"text": "a"}, number=2))
    assert isinstance(parked, Parked)
    assert parked.snapshot is not None
    assert ran == ["first"]
    for number in (3, 4):  # the second time the thread has ended already
        attempt = Attempt({"text": "a"}, inputs=["2"], snapshot=parked.snapshot, number=number)
        result = await service.run(attempt)
        assert isinstance(result, TaskResult)
        assert result.value == {"text": "a12"}
    next_step = Attempt({"text": "b"})
    next_step.step_id = "other:1"
    assert isinstance(await service.run(next_step), Parked)
    assert ran == ["first", "first"]


def test_a_thread_needs_a_checkpointer() -> None:
    with pytest.raises(SettingError, match="no checkpointer"):
        LangGraphService(letters().compile(), thread=lambda context: context.session_id)


class Bag(TypedDict, total=False):
    hidden: Any


async def test_classes_that_the_state_does_not_name() -> None:
    graph = StateGraph(Bag)
    graph.add_node("put", lambda _: {"hidden": Mark(1)})
    graph.add_node("add", lambda state: {"hidden": Mark(state["hidden"].points + int(interrupt("more?")))})
    graph.add_edge(START, "put")
    graph.add_edge("put", "add")
    graph.add_edge("add", END)
    with pytest.raises(NonRetryableError, match="cannot be stored") as caught:
        await as_service(graph.compile()).run(Attempt({}))
    assert "subjects_langgraph.Mark" in (caught.value.why or "")
    service = LangGraphService(graph.compile(), state_types=[Mark])
    parked = await service.run(Attempt({}))
    assert isinstance(parked, Parked)
    result = await service.run(Attempt({}, inputs=[2], snapshot=parked.snapshot))
    assert isinstance(result, TaskResult)
    assert result.value == {"hidden": {"points": 3}}


async def test_a_run_is_cancelled_with_its_step() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(state: Text) -> Text:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return state

    before = asyncio.all_tasks()
    running = asyncio.create_task(as_service(one_node(wait).compile()).run(Attempt("go")))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_a_snapshot_that_it_cannot_read() -> None:
    state = '{"checkpoints": [{"namespace": ""}], "waits_for": [], "usage": {}}'
    snapshot = f'{{"version": 1, "library": "langgraph", "consumed": 0, "questions": [], "state": {state}}}'
    with pytest.raises(ServiceRaisedError, match="cannot be resumed"):
        await as_service(letters().compile()).run(Attempt({}, snapshot=snapshot.encode()))
