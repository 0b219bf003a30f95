"""Workflows of the kinds that the published guides show, in their words: `@step()`, nesting."""

# mypy: ignore-errors
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import deploy_workflow  # noqa: F401 - a program imports it before it builds its workflows


class ProgressEvent(Event):
    """Something is being done."""

    progress: str


class Streaming(Workflow):
    """Says how far it is."""

    @step()
    async def run_step(self, ctx: Context, ev: StartEvent) -> StopEvent:
        """The only step."""
        for number in range(2):
            ctx.write_event_to_stream(ProgressEvent(progress=f"{number}"))
        return StopEvent(result=str(ev.get("arg1", "")) + "_result")


class Counting(Workflow):
    """Counts the tasks of a session in its context."""

    @step()
    async def run_step(self, ctx: Context, ev: StartEvent) -> StopEvent:
        """The only step."""
        del ev
        count = await ctx.store.get("count", default=0) + 1
        await ctx.store.set("count", count)
        return StopEvent(result=count)


class Asking(Workflow):
    """Asks a person."""

    @step()
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        """The question."""
        del ev
        return InputRequiredEvent(prefix="How many?")

    @step()
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        """The end."""
        return StopEvent(result=ev.response)


class InnerWorkflow(Workflow):
    """Adds a word."""

    @step()
    async def run_step(self, ev: StartEvent) -> StopEvent:
        """The only step."""
        arg1 = ev.get("arg1")
        if not arg1:
            raise ValueError("arg1 is required.")
        return StopEvent(result=str(arg1) + "_result")


class OuterWorkflow(Workflow):
    """Adds a word to what the inner one says."""

    @step()
    async def run_step(self, ev: StartEvent, inner: InnerWorkflow) -> StopEvent:
        """The only step."""
        arg1 = ev.get("arg1")
        if not arg1:
            raise ValueError("arg1 is required.")
        arg1 = await inner.run(arg1=arg1)
        return StopEvent(result=str(arg1) + "_result")


inner = InnerWorkflow()
outer = OuterWorkflow()
outer.add_workflows(inner=InnerWorkflow())
WORKFLOWS = {"streaming": Streaming(), "counting": Counting(), "asking": Asking(), "inner": inner, "outer": outer}
