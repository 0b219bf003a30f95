"""Agents of llama-index that ask a person: nothing is held while the person thinks, and any process goes on."""

from __future__ import annotations

from tests.processes.children import Child, System
from tests.support import PROCESS_S, eventually

from llama_deploy.types import TaskState

SAID = {
    "desk": "give it back | the person says yes",
    "crew": "give it back | Agent refunds is now handling the request due to the following reason: it is about money."
    "\nPlease continue with the current request. | the person says yes",
    "reasoner": "the person says yes",
}


async def start(system: System) -> Child:
    child = await Child.start("agents_program.py", system.url, str(system.sink), folder=system.folder)
    system.children.append(child)
    return child


async def test_an_agent_goes_on_in_another_process_after_everything_has_died(system: System) -> None:
    await system.start_plane()
    first = await start(system)
    async with system.client() as client:
        tasks = {name: await client.submit(name, user_msg="give it back", wait_for_service=True) for name in SAID}

        async def all_ask() -> bool:
            return all([(await client.get_task(one)).state is TaskState.INPUT_REQUIRED for one in tasks.values()])

        async def all_parked() -> bool:
            entries = [[entry async for entry in client.history(one)] for one in tasks.values()]
            return all(history[-1].kind == "input_requested" for history in entries) and all(
                view.instances[0].running == 0 for view in await client.list_services()
            )

        await eventually(all_ask, PROCESS_S)
        await eventually(all_parked, PROCESS_S)
        await first.kill()
        await system.plane.kill()
        await system.start_plane()
        second = await start(system)
        for task_id in tasks.values():
            await client.send_input(task_id, "yes")
        results = {name: await client.result(one) for name, one in tasks.items()}
        text = {name: result["response"]["blocks"][0]["text"] for name, result in results.items()}
        assert text == SAID
        assert {name: result["current_agent_name"] for name, result in results.items()} == {
            "desk": "desk",
            "crew": "refunds",
            "reasoner": "reasoner",
        }
        attempts = [entry.attempt async for entry in client.history(tasks["desk"]) if entry.kind == "answered"]
        assert attempts == [1]
    # What the tool did before it asked, it does again when the step goes on: as any step that waits for an event.
    lines = [line.split() for line in system.sink.read_text().splitlines()]
    for task_id in tasks.values():
        assert [int(pid) for step, _, pid in lines if step.startswith(task_id)] == [
            first.process.pid,
            second.process.pid,
        ]
