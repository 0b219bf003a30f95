"""What a published program does with its client; prints what it saw as one JSON object."""

# mypy: ignore-errors
import asyncio
import json
import time

from workflows.events import HumanResponseEvent

from llama_deploy import Client, ControlPlaneConfig, LlamaDeployClient


async def main() -> None:
    """One session, several kinds of tasks."""
    client = Client(control_plane_url=ControlPlaneConfig().url, timeout=120)
    session = await client.core.sessions.create()
    seen = {"nested": await session.run("outer", arg1="hello_world")}

    task_id = await session.run_nowait("streaming", arg1="hello")
    seen["events"] = [event async for event in session.get_task_result_stream(task_id)]
    seen["final"] = (await session.get_task_result(task_id)).result

    counts = [await session.run("counting") for _ in range(2)]
    other = await client.core.sessions.create()
    seen["counts"] = [*counts, await other.run("counting")]

    asked = await session.run_nowait("asking")
    async for event in session.get_task_result_stream(asked):
        if event.get("prefix"):
            await session.send_event(service_name="asking", task_id=asked, ev=HumanResponseEvent(response="42"))
    seen["answered"] = (await session.get_task_result(asked)).result
    print(json.dumps(seen))


def wait_for_services(count: int) -> None:
    """Until all of them are there: the parts are started in any order."""
    client = LlamaDeployClient(ControlPlaneConfig(), timeout=120)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if len(client.list_services()) >= count:
                return
        except OSError:
            pass
        except Exception as error:  # the core is not there yet
            if "cannot reach" not in str(error):
                raise
        time.sleep(0.1)


if __name__ == "__main__":
    wait_for_services(5)
    asyncio.run(main())
