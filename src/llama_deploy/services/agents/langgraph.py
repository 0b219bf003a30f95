"""A compiled LangGraph graph as a service.

A run keeps its checkpoints in memory; when it is interrupted, the newest of them are stored with the step, and the run
goes on from there in whatever process. A graph with a checkpointer of its own may keep them there instead (`thread`).
How checkpoints are stored is in `langgraph_checkpoints`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.errors import is_invalid_resume
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt, StateSnapshot

from llama_deploy.errors import ArgumentsError, NonRetryableError, SettingError
from llama_deploy.messages.values import encode_json
from llama_deploy.services.agents.hosted import Finished, HostedAgent, Waiting, remembered
from llama_deploy.services.agents.langgraph_checkpoints import Checkpoints
from llama_deploy.services.agents.questions import Question, Reply
from llama_deploy.services.base import StepContext

STEP_KEY = "llama_deploy_step_id"
"""Where a checkpoint's metadata says which step has written it."""
_PROMPT_FIELDS = ("question", "prompt", "message", "description", "text")

Output = str | Callable[[Any], Any] | None


class LangGraphService(HostedAgent):
    """Runs `graph` once per step.

    The input is the graph's state as an object; text becomes a user message where the state has `messages`, or the one
    field that it has. The output is the final state, one key of it, or what `output` makes of it. Updates of nodes,
    text of models and what nodes write are streamed. `interrupt()` asks a person, whose answer it returns.
    """

    library = "langgraph"

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        *,
        name: str | None = None,
        description: str | None = None,
        output: Output = None,
        config: Mapping[str, Any] | None = None,
        graph_context: Callable[[StepContext], Any] | None = None,
        thread: Callable[[StepContext], str] | None = None,
        state_types: Iterable[type] = (),
        concurrency: int = 8,
        run_timeout_s: float = 600.0,
    ) -> None:
        """`config` is handed to each run (`recursion_limit`, `tags`, …), and so is what `graph_context` makes.

        With `thread` the graph's own checkpointer is used, under the thread that it names: a step that died goes on
        from the last checkpoint there. `state_types` are classes of values in the state that its annotations do not
        name; they are needed to read it back.
        """
        schema = _schema(graph.get_input_jsonschema)
        super().__init__(
            name=name or graph.get_name(),
            description=description or f"The graph {name or graph.get_name()}.",
            input_schema=schema,
            output_schema=_schema(graph.get_output_jsonschema) if output is None else {},
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
        )
        if thread is not None and graph.checkpointer in (None, False, True):
            raise SettingError(
                f"the graph `{self.definition.service_name}` has no checkpointer of its own",
                fix="compile it with one, or leave `thread` out",
            )
        self._graph = graph
        self._fields = list(schema.get("properties", ()))
        self._output = output
        self._config = dict(config or {})
        self._graph_context = graph_context
        self._thread = thread
        self._state_types = tuple(state_types)

    async def advance(self, context: StepContext, state: Any, replies: Sequence[Reply]) -> Finished | Waiting:
        """Run the graph from its input, or from the checkpoint with which it waited."""
        checkpoints = Checkpoints(self._graph, self._state_types)
        usage = UsageMetadataCallbackHandler()
        if self._thread is not None:
            graph, thread = self._graph, self._thread(context)
        else:
            thread = context.step_id
            graph = self._graph.copy(update={"checkpointer": checkpoints.saver})
            saved = remembered(context) if state is None else state["checkpoints"]
            await checkpoints.restore(thread, saved or [])
        config = self._run_config(context, thread, usage)
        used_before = {} if state is None else state["usage"]
        answered = {} if state is None else dict(zip(state["waits_for"], replies, strict=True))
        stands = await graph.aget_state(config)
        is_ours = stands.metadata is not None and dict(stands.metadata).get(STEP_KEY) == context.step_id
        if not is_ours:
            output = await self._run(graph, self._input(context), config, context)
        elif (way := _way_on(stands, answered)) is _ENDED:
            output = stands.values
        elif way is not _WAITS:
            try:
                output = await self._run(graph, way, config, context)
            except Exception as error:
                if not is_invalid_resume(error):
                    raise
                return Waiting(questions=_questions(stands, problem=str(error)), state=state)
        else:
            output = None
        used = _added(used_before, _used(usage))
        stands = await graph.aget_state(config)
        if stands.next:
            saved = [] if self._thread is not None else checkpoints.saved(thread)
            waiting = {"checkpoints": saved, "waits_for": _waits_for(stands), "usage": used}
            return Waiting(questions=_questions(stands), state=waiting)
        keeps = self._thread is None and context.kept_memory is not None
        left = checkpoints.saved(thread) if keeps else None
        return Finished(output=self._picked(output), usage=used, remember=left)

    def _run_config(self, context: StepContext, thread: str, usage: UsageMetadataCallbackHandler) -> Any:
        given = self._config
        callbacks = list(given.get("callbacks") or [])
        return {
            **given,
            "configurable": {**given.get("configurable", {}), "thread_id": thread},
            "callbacks": [*callbacks, usage],
            "metadata": {**given.get("metadata", {}), STEP_KEY: context.step_id},
        }

    async def _run(self, graph: Any, given: Any, config: Any, context: StepContext) -> Any:
        """Run the graph as far as it goes; its last output."""
        options: dict[str, Any] = {}
        if self._graph_context is not None:
            options["context"] = self._graph_context(context)
        output = None
        async for mode, chunk in graph.astream(
            given,
            config,
            stream_mode=["values", "updates", "messages", "custom"],
            output_keys=graph.output_channels,
            **options,
        ):
            if mode == "values":
                output = chunk
            else:
                _tell(context, mode, chunk)
        return output

    def _input(self, context: StepContext) -> Any:
        given = context.arguments
        if isinstance(given, dict):
            return given
        if "messages" in self._fields:
            return {"messages": [{"role": "user", "content": given}]}
        if len(self._fields) == 1:
            return {self._fields[0]: given}
        if not self._fields:
            return given
        raise ArgumentsError(
            "the input of a graph is a JSON object with the fields of its state",
            why=f"the input is text, and the state has {', '.join(self._fields)}",
            fix='give {"field": value, ...}',
            schema=self.definition.input_schema,
        )

    def _picked(self, output: Any) -> Any:
        if isinstance(output, dict):
            output = {key: value for key, value in output.items() if key != "__interrupt__"}
        if callable(self._output):
            return self._output(output)
        if isinstance(self._output, str):
            return output[self._output]
        return output


_ENDED: Any = object()
_WAITS: Any = object()


def _way_on(stands: StateSnapshot, answered: Mapping[str, Reply]) -> Any:
    """What a run of this step that was left at `stands` goes on with."""
    if not stands.next:
        return _ENDED
    interrupts = {interrupt.id for interrupt in stands.interrupts}
    if resume := {name: reply.value for name, reply in answered.items() if name in interrupts}:
        return Command(resume=resume)
    if interrupts:
        return _WAITS
    reply = answered.get(_breakpoint(stands))
    if reply is not None and not reply.approved:
        raise NonRetryableError(f"a person has stopped the graph before {', '.join(stands.next)}", why=reply.reason)
    return None


def _breakpoint(stands: StateSnapshot) -> str:
    """The name of a place where the graph is compiled to stop."""
    return "before:" + ",".join(stands.next)


def _waits_for(stands: StateSnapshot) -> list[str]:
    return [interrupt.id for interrupt in stands.interrupts] or [_breakpoint(stands)]


def _questions(stands: StateSnapshot, *, problem: str = "") -> list[Question]:
    if stands.interrupts:
        return [_question(interrupt, problem) for interrupt in stands.interrupts]
    names = ", ".join(stands.next)
    return [Question(prompt=f"The graph stands before {names}. Go on?", kind="approval")]


def _question(interrupt: Interrupt[Any], problem: str) -> Question:
    value = json.loads(encode_json(interrupt.value))
    texts = [value] if isinstance(value, str) else []
    if isinstance(value, dict):
        texts = [value[name] for name in _PROMPT_FIELDS if isinstance(value.get(name), str)]
    schema = getattr(interrupt, "response_schema", None)
    return Question(
        prompt=texts[0] if texts else json.dumps(value, ensure_ascii=False),
        schema=schema if isinstance(schema, dict) else None,
        details={"interrupt": value, **({"problem": problem} if problem else {})},
    )


def _tell(context: StepContext, mode: str, chunk: Any) -> None:
    if mode == "custom":
        context.stream({"type": "custom", "data": chunk})
    elif mode == "messages":
        message, about = chunk
        if isinstance(message, AIMessage) and (text := _text(message)):
            context.stream({"type": "text", "text": text, "node": about.get("langgraph_node")})
    else:
        for node, update in chunk.items():
            if node != "__interrupt__":
                context.stream({"type": "node", "node": node, "update": _as_json(update)})


def _text(message: BaseMessage) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict) and part.get("type") == "text")


def _as_json(update: Any) -> Any:
    """The update of a node; None for one without a JSON form, which is no reason for the run to fail."""
    try:
        return json.loads(encode_json(update))
    except ValueError:
        return None


def _used(usage: UsageMetadataCallbackHandler) -> dict[str, float]:
    used: dict[str, float] = {}
    for of_model in usage.usage_metadata.values():
        used = _added(
            used,
            {
                "tokens": of_model["total_tokens"],
                "input_tokens": of_model["input_tokens"],
                "output_tokens": of_model["output_tokens"],
            },
        )
    return used


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def _schema(made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return made()
    except (RuntimeError, TypeError, ValueError):  # pydantic's errors of definition: a state without a JSON form
        return {}
