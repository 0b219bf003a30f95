"""What a program written for llama-deploy 0.8.x does with its client; prints what it got as one JSON object.

Run by the interpreter of an environment in which that version is installed, against the port that it is given.
"""

# mypy: ignore-errors
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from llama_deploy import Client
from llama_deploy.types import ServiceDefinition, TaskDefinition
from workflows.events import HumanResponseEvent

URL = f"http://127.0.0.1:{sys.argv[1]}"


def client() -> Client:
    """A client of both servers, which are one here."""
    return Client(api_server_url=URL, control_plane_url=URL, timeout=120)


async def core() -> dict[str, Any]:
    """`.core`: the control plane."""
    core = client().core
    session = await core.sessions.create()
    seen: dict[str, Any] = {"run": await session.run("echo", text="hello")}
    try:
        await session.run("nobody")
    except Exception as error:
        seen["unserved"] = not isinstance(error, TimeoutError)  # it is refused at once
    hurried = Client(control_plane_url=URL, timeout=0.5).core
    try:
        await (await hurried.sessions.create()).run("person")
    except Exception as error:  # where the machine is slow, a request may run into the same time before the run does
        seen["timed_out"] = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
    task_id = await session.run_nowait("tell", count=3, waits=True)
    seen["stream"] = []
    async for event in session.get_task_result_stream(task_id):
        seen["stream"].append(event)
        if len(seen["stream"]) == 1:  # it has come while the task is running
            await session.run("go")
    result = await session.get_task_result(task_id)
    seen["result"] = [result.task_id == task_id, result.result, result.data]
    try:
        seen["failed"] = await session.run("fail", text="no ink")
    except Exception as error:
        seen["failed"] = type(error).__name__
    asked = await session.run_nowait("person")
    async for event in session.get_task_result_stream(asked):
        if "question" in event:
            seen["early"] = await session.get_task_result(asked)
            await session.send_event("person", asked, HumanResponseEvent(response="Ada"))
    seen["answered"] = (await session.get_task_result(asked)).result
    await session.create_task(TaskDefinition(input='{"text": "made"}', service_id="echo"))
    seen["tasks"] = [task.service_id for task in await session.get_tasks()]
    seen["listed"] = session.id in [one.id for one in await core.sessions.list()]
    seen["got"] = (await core.sessions.get(session.id)).id == session.id
    seen["got_or_created"] = (await core.sessions.get_or_create(session.id)).id == session.id
    seen["created"] = (await core.sessions.get_or_create("unknown")).id not in {"unknown", session.id}
    await core.services.register(ServiceDefinition(service_name="elsewhere", description="d", host="h", port=1))
    seen["services"] = sorted(one.id for one in await core.services.list())
    await core.services.deregister("elsewhere")
    seen["services_left"] = sorted(one.id for one in await core.services.list())
    await core.sessions.delete(session.id)
    seen["deleted"] = session.id not in [one.id for one in await core.sessions.list()]
    return seen


async def apiserver() -> dict[str, Any]:
    """`.apiserver`: the one deployment that the server is."""
    server = client().apiserver
    status = await server.status()
    seen: dict[str, Any] = {"status": [status.status.value, status.deployments]}
    seen["deployments"] = [one.id for one in await server.deployments.list()]
    deployment = await server.deployments.get("desk")
    seen["run"] = await deployment.tasks.run(TaskDefinition(input='{"text": "hello"}', service_id="echo"))
    seen["default"] = await deployment.tasks.run(TaskDefinition(input='{"text": "hello"}'))
    task = await deployment.tasks.create(TaskDefinition(input='{"count": 3}', service_id="tell"))
    seen["events"] = [event async for event in task.events()]
    seen["result"] = (await task.results()).result
    asked = await deployment.tasks.create(TaskDefinition(input="{}", service_id="person"))
    async for event in asked.events():
        if "question" in event:
            sent = await asked.send_event(HumanResponseEvent(response="Ada"), "person")
            seen["sent"] = sent.service_id
    seen["answered"] = (await asked.results()).result
    session = await deployment.sessions.create()
    inside = TaskDefinition(input='{"text": "inside"}', service_id="echo", session_id=session.session_id)
    seen["inside"] = await deployment.tasks.run(inside)
    seen["sessions"] = session.session_id in [one["session_id"] for one in await deployment.sessions.list()]
    await deployment.sessions.delete(session.session_id)
    try:
        with Path(__file__).open() as file:  # what it holds does not matter
            await server.deployments.create(file, base_path=".")
    except Exception as error:
        seen["refused"] = str(error)
    return seen


def blocking() -> dict[str, Any]:
    """`.sync`: the same calls, blocking."""
    sync = client().sync
    session = sync.core.sessions.create()
    seen: dict[str, Any] = {"run": session.run("echo", text="hello")}
    task_id = session.run_nowait("tell", count=3)
    seen["stream"] = list(session.get_task_result_stream(task_id))
    seen["result"] = session.get_task_result(task_id).result
    seen["services"] = sorted(one.id for one in sync.core.services.list())
    deployment = sync.apiserver.deployments.get("desk")
    seen["deployed"] = deployment.tasks.run(TaskDefinition(input='{"text": "hello"}', service_id="echo"))
    return seen


if __name__ == "__main__":
    print(json.dumps({"core": asyncio.run(core()), "apiserver": asyncio.run(apiserver()), "sync": blocking()}))
