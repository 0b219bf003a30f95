"""What a program written for llama-deploy 0.2.x does with its clients; prints what it got as one JSON object.

Run by the interpreter of an environment in which that version is installed, against the URL of `--port`.
"""

# mypy: ignore-errors
import asyncio
import json
import sys
from typing import Any

from llama_deploy import AsyncLlamaDeployClient, ControlPlaneConfig, LlamaDeployClient
from llama_deploy.types import ServiceDefinition, TaskDefinition


def blocking(config: ControlPlaneConfig) -> dict[str, Any]:
    """Everything that `LlamaDeployClient` offers."""
    client = LlamaDeployClient(config, timeout=120)
    session = client.create_session()
    seen: dict[str, Any] = {"run": session.run("echo", text="hello")}
    try:
        session.run("nobody")
    except Exception as error:
        seen["unserved"] = not isinstance(error, TimeoutError)  # it is refused at once
    try:
        LlamaDeployClient(config, timeout=1).create_session().run("person")
    except Exception as error:  # where the machine is slow, a request may run into the same time before the run does
        seen["timed_out"] = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
    task_id = session.run_nowait("tell", count=3)
    seen["stream"] = list(session.get_task_result_stream(task_id))
    result = session.get_task_result(task_id)
    seen["result"] = [result.task_id == task_id, result.result, result.data]
    try:
        seen["failed"] = session.run("fail", text="no ink")
    except Exception as error:
        seen["failed"] = [type(error).__name__, "no ink" in str(error)]
    made = session.create_task(TaskDefinition(input='{"text": "made"}', agent_id="echo"))
    seen["tasks"] = [task.agent_id for task in session.get_tasks()]
    seen["current"] = session.get_current_task().task_id == made
    seen["listed"] = session.session_id in [one.session_id for one in client.list_sessions()]
    found = client.get_session(session.session_id)
    seen["same"] = found.session_id == session.session_id
    seen["got"] = client.get_or_create_session(session.session_id).session_id == session.session_id
    client.register_service(ServiceDefinition(service_name="elsewhere", description="d", host="h", port=1))
    seen["services"] = sorted(one.service_name for one in client.list_services())
    seen["service"] = client.get_service("elsewhere").description
    client.deregister_service("elsewhere")
    seen["services_left"] = sorted(one.service_name for one in client.list_services())
    client.delete_session(session.session_id)
    try:
        client.get_session(session.session_id)
    except ValueError as error:
        seen["deleted"] = type(error).__name__
    return seen


async def asynchronous(config: ControlPlaneConfig) -> dict[str, Any]:
    """The same with `AsyncLlamaDeployClient`, the most of it."""
    client = AsyncLlamaDeployClient(config, timeout=120)
    session = await client.create_session()
    seen: dict[str, Any] = {"run": await session.run("echo", text="hello")}
    task_id = await session.run_nowait("tell", count=3)  # this version reads a stream to its end before it gives any
    seen["stream"] = [event async for event in session.get_task_result_stream(task_id)]
    seen["result"] = (await session.get_task_result(task_id)).result
    seen["sessions"] = session.session_id in [one.session_id for one in await client.list_sessions()]
    await client.delete_session(session.session_id)
    return seen


if __name__ == "__main__":
    CONFIG = ControlPlaneConfig(host="127.0.0.1", port=int(sys.argv[1]))
    print(json.dumps({"sync": blocking(CONFIG), "async": asyncio.run(asynchronous(CONFIG))}))
