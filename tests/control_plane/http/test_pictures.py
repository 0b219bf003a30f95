"""The route that draws a task: its forms, and that nothing in a drawing may run."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import httpx2
from tests.control_plane.http.conftest import Served

from llama_deploy.orchestrators import Picture
from llama_deploy.types import TaskState


async def test_a_task_is_drawn_as_json_svg_and_mermaid(http: httpx2.AsyncClient, served: Served) -> None:
    client = served.deployment.client
    task_id = await client.submit("shout", input={"text": "hello"})
    await client.wait(task_id)
    path = f"/v1/tasks/{task_id}/graph"
    answer = await http.get(path)
    assert answer.headers["content-type"] == "application/json"
    nodes = {node["name"]: node["state"] for node in answer.json()["nodes"]}
    assert nodes == {"start": "done", "shout": "done", "end": "done"}
    by_format = await http.get(path, params={"format": "svg"})
    by_header = await http.get(path, headers={"accept": "text/html, image/svg+xml;q=0.9"})
    for drawn in (by_format, by_header):
        assert drawn.headers["content-type"].startswith("image/svg+xml")
        assert drawn.headers["content-security-policy"].startswith("default-src 'none'")
        assert drawn.headers["x-content-type-options"] == "nosniff"
        ET.fromstring(drawn.text)
    text = await http.get(path, headers={"accept": "text/vnd.mermaid"})
    assert text.headers["content-type"].startswith("text/vnd.mermaid")
    assert text.text.startswith("flowchart TD\n")
    picture = await client.graph(task_id)
    assert isinstance(picture, Picture)
    assert picture.svg() == by_format.text
    assert picture.mermaid() == text.text


async def test_a_task_that_goes_on_is_drawn_with_who_works_on_it(http: httpx2.AsyncClient, served: Served) -> None:
    client = served.deployment.client
    task_id = await client.submit("gate", input={"name": "one"})
    async for entry in client.history(task_id, follow=True):
        if entry.state is not TaskState.SUBMITTED or entry.messages:
            break
    answer = await http.get(f"/v1/tasks/{task_id}/graph")
    (node,) = [node for node in answer.json()["nodes"] if node["name"] == "gate"]
    assert node["state"] in ("queued", "running")
    assert node["step_id"] == f"{task_id}:1"
    served.open("one")
    await client.wait(task_id)


async def test_what_cannot_be_drawn(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/v1/tasks/none/graph")).status_code == 404
    refused = await http.get("/v1/tasks/none/graph", params={"format": "png"})
    assert refused.status_code == 400
    assert "format" in refused.json()["what"]
