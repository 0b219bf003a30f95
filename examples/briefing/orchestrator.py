"""Which step of a briefing is due, decided from what is known: an orchestrator as any user may write one.

A task brings the paths of documents. Each document goes through four steps of its own, whatever the others do; when
all are through, `write` gets everything. What a step answered is kept under a key of its own, so that a decision
records no more than what is new. It decides from the task and the state alone: no clock, no file, no memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from llama_deploy import BaseOrchestrator, NewTask, QueueMessage, TaskDefinition, TaskResult, get_result_key

State = dict[str, Any]


class Step(NamedTuple):
    """One step of a document: who does it, what it needs to know, and what is known afterwards."""

    service: str
    takes: tuple[str, ...]
    gives: str


STEPS = (
    Step("read", ("path",), "document"),
    Step("analyse", ("document",), "analysis"),
    Step("summarise", ("document", "analysis"), "summary"),
    Step("check", ("document", "summary"), "check"),
)
JOB, WRITE = "briefing", "write"
TEXT = ("blocks", "table")
"""What a document is long by; `write` needs the rest of it only."""


class Order(BaseModel):
    """The input of a task for the whole job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: list[str]
    title: str = "Briefing"


class BriefingOrchestrator(BaseOrchestrator):
    """Sends every document through its steps, and the whole to `write`. Failures are left to the retry policies."""

    async def get_next_messages(self, task_def: TaskDefinition, state: State) -> tuple[list[QueueMessage], State]:
        """The step that is due of each document, if it was not sent yet; at the end `write`, whose answer ends it."""
        own = state.setdefault(task_def.task_id, {})
        messages = []
        if task_def.agent_id != JOB:  # one service alone, as in `llamactl run read`
            if "sent" not in own:
                own["sent"] = task_def.agent_id
                messages.append(QueueMessage(type=task_def.agent_id or "", data=NewTask(task=task_def).model_dump()))
            return messages, state
        order = Order.model_validate_json(task_def.input)
        for path in order.documents:
            step = next((step for step in STEPS if key(step.gives, path) not in own), None)
            if step is not None and own.get(key("sent", path)) != step.service:
                own[key("sent", path)] = step.service
                messages.append(QueueMessage(type=step.service, tag=path, data=_arguments(step, path, own)))
        if "sent" not in own and all(key("check", path) in own for path in order.documents):
            own["sent"] = WRITE
            items = [_item(path, own) for path in order.documents]
            messages.append(QueueMessage(type=WRITE, data={"items": items, "title": order.title}))
        return messages, state

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        """Keep what the step found out; of a document that is through, only what `write` needs."""
        if result.tag is None:  # about no single document: the briefing itself
            state[get_result_key(result.task_id)] = result
            return state
        own, path = state[result.task_id], result.tag
        step = next(step for step in STEPS if step.service == result.service)
        own[key(step.gives, path)] = result.output
        if step is STEPS[-1]:
            document = own[key("document", path)]
            own[key("document", path)] = {name: value for name, value in document.items() if name not in TEXT}
        return state


def key(what: str, path: str) -> str:
    """Where in a task's own state it stands what is known of one document."""
    return f"{what} {path}"


def _arguments(step: Step, path: str, own: State) -> dict[str, Any]:
    return {name: path if name == "path" else own[key(name, path)] for name in step.takes}


def _item(path: str, own: State) -> dict[str, Any]:
    return {name: own[key(name, path)] for name in ("document", "analysis", "summary", "check")}
