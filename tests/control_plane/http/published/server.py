"""A deployment for published clients: workflows and a function, listening on a free port, which it prints."""

import asyncio

from llama_deploy import Deployment, NonRetryableError, WorkflowService, service
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

GATE = asyncio.Event()
"""Opened by `go`: what a client has read by then was sent while the task was running."""


class Progress(Event):
    """A piece of work is done."""

    number: int


class Question(InputRequiredEvent):
    """A person is asked."""

    question: str


class Echo(Workflow):
    """Gives back what it was given."""

    @step
    async def give_back(self, event: StartEvent) -> StopEvent:
        """The only step."""
        return StopEvent(result=f"echo {event.text}")


class Tell(Workflow):
    """Says how far it is; on request, it goes on after the first event only when it is told to."""

    @step
    async def work(self, context: Context, event: StartEvent) -> StopEvent:
        """The only step."""
        for number in range(event.count):
            context.write_event_to_stream(Progress(number=number))
            if event.get("waits"):
                await GATE.wait()
        return StopEvent(result="told")


class Person(Workflow):
    """Asks for a name, and greets."""

    @step
    async def ask(self, event: StartEvent) -> Question:
        """The question."""
        del event
        return Question(question="your name?")

    @step
    async def greet(self, event: HumanResponseEvent) -> StopEvent:
        """The answer to the answer."""
        return StopEvent(result=f"hello {event.response}")


@service
async def go() -> str:
    """Lets `tell` go on."""
    GATE.set()
    return "went"


@service
async def fail(text: str) -> str:
    """Fails for good."""
    raise NonRetryableError(text)


async def main() -> None:
    """Serve until somebody kills it."""
    services = [WorkflowService(cls(), name=cls.__name__.lower()) for cls in (Echo, Tell, Person)]
    async with Deployment(
        [*services, fail, go], name="desk", store=":memory:", port=0, default_service="echo", quiet=True
    ) as deployment:
        print(deployment.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
