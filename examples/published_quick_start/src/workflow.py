"""The workflow of the quick start: it sends back what it is given."""

import asyncio

from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step


class EchoWorkflow(Workflow):
    """A workflow with one step that sends back the input given."""

    @step()
    async def run_step(self, ev: StartEvent) -> StopEvent:
        """Sends it back."""
        message = str(ev.get("message", ""))
        return StopEvent(result=f"Message received: {message}")


echo_workflow = EchoWorkflow()


async def main() -> None:
    """Try it without any server."""
    print(await echo_workflow.run(message="Hello!"))


if __name__ == "__main__":
    asyncio.run(main())
