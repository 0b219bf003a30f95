"""What every pattern here shares: run one task, draw the orchestrator, print what was told on the way and the timeline.

`python examples/patterns/NAME.py` runs it; `--svg FILE` writes the picture of the orchestrator, `--pictures FOLDER` the
graph with where the task went on it, and the timeline.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_deploy import Deployment
from llama_deploy.cli.timeline import Timeline
from llama_deploy.cli.timeline_picture import drawn
from llama_deploy.cli.timeline_svg import timeline_svg
from llama_deploy.client import Client
from llama_deploy.orchestrators import Orchestrator


def show(
    policy: Orchestrator[Any],
    services: Sequence[Any],
    question: Any,
    *,
    person: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    """Run one task of a pattern from beginning to end. `person` answers what a person is asked."""
    print(policy.picture().mermaid())
    if "--svg" in sys.argv[1:]:
        Path(sys.argv[sys.argv.index("--svg") + 1]).write_text(policy.picture().svg(), encoding="utf-8")
    asyncio.run(_show(policy, services, question, person))


async def _show(
    policy: Orchestrator[Any], services: Sequence[Any], question: Any, person: Callable[[dict[str, Any]], Any] | None
) -> None:
    async with Deployment(services=services, orchestrator=policy, store=":memory:", quiet=True) as deployment:
        client = deployment.client
        text = question if isinstance(question, str) else json.dumps(question)
        task_id = await client.submit(None, input=text, options={"retry": {"initial_s": 0.05}})
        timeline = Timeline()
        async for entry in client.history(task_id, follow=True):
            timeline.fold(entry)
            if entry.state.value == "input_required" and person is not None:
                await _answer(client, task_id, person)
        async for event in client.stream(task_id):
            print("told:", _short(event.data))
        result = await client.wait(task_id)
        print(f"{result.status}: {_short(result.output if result.status == 'completed' else result.result)}\n")
        print("\n".join(drawn(timeline, width=100)))
        if "--pictures" in sys.argv[1:]:
            _keep((await client.graph(task_id)).svg(), timeline_svg(timeline))


def _keep(graph: str, timeline: str) -> None:
    """Write both pictures, named after the program."""
    folder, name = Path(sys.argv[sys.argv.index("--pictures") + 1]), Path(sys.argv[0]).stem
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-graph.svg").write_text(graph, encoding="utf-8")
    (folder / f"{name}-timeline.svg").write_text(timeline, encoding="utf-8")


async def _answer(client: Client, task_id: str, person: Callable[[dict[str, Any]], Any]) -> None:
    prompt = (await client.get_task(task_id)).prompt
    if prompt is not None:
        answer = person(prompt)
        print(f"asked: {prompt['prompt']} -> {_short(answer)}")
        await client.send_input(task_id, answer, step_id=prompt["step_id"])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:159] + "…"
