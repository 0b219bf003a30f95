"""The same request under the same key is one task: over HTTP and the socket at once, after restarts, for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support import DEADLINE_S

from llama_deploy import Client, Deployment, service
from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import TaskConflictError

ran: list[str] = []


@service
async def shout(text: str) -> str:
    """The text, louder."""
    ran.append(text)
    return text.upper()


def deployment(folder: Path, **settings: Any) -> Deployment:
    return Deployment(
        services=[shout], store=folder / "s.db", port=0, quiet=True, settings=EngineSettings(**settings), name="twice"
    )


async def over_http(url: str, text: str, key: str) -> tuple[int, str]:
    body = {"service": "shout", "input": {"text": text}}
    async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S) as http:
        answer = await http.post("/v1/tasks", json=body, headers={"Idempotency-Key": key})
        return answer.status_code, answer.json().get("task_id") or answer.json()["code"]


async def over_socket(url: str, text: str, key: str) -> str:
    async with Client(url) as client:
        return await client.submit("shout", input={"text": text}, idempotency_key=key)


async def test_two_kinds_of_clients_at_once_make_one_task(tmp_path: Path) -> None:
    ran.clear()
    async with deployment(tmp_path) as running:
        calls = [over_socket(running.url, "a", "k") for _ in range(5)]
        sockets, https = await asyncio.gather(
            asyncio.gather(*calls), asyncio.gather(*(over_http(running.url, "a", "k") for _ in range(5)))
        )
        (task_id,) = {*sockets, *(task_id for _, task_id in https)}
        assert sorted(status for status, _ in https) in ([200] * 5, [200] * 4 + [201])
        assert await running.client.result(task_id) == "A"
    assert ran == ["a"]


async def test_a_race_of_different_requests_has_one_winner_and_the_others_are_refused(tmp_path: Path) -> None:
    async with deployment(tmp_path) as running:
        answers = await asyncio.gather(*(over_http(running.url, f"text {n}", "k") for n in range(6)))
        assert sorted(status for status, _ in answers) == [201] + [409] * 5
        with pytest.raises(TaskConflictError):
            await over_socket(running.url, "another", "k")


async def test_a_restart_and_leaving_memory_change_nothing(tmp_path: Path) -> None:
    ran.clear()
    async with deployment(tmp_path, ended_tasks_cached_max=0) as running:
        first = await over_socket(running.url, "a", "k")
        assert await running.client.result(first) == "A"
        assert await over_socket(running.url, "a", "k") == first  # it has ended, and is in memory no more
        assert await over_http(running.url, "b", "k") == (409, "LD205")
    async with deployment(tmp_path) as running:
        told, (status, found) = await asyncio.gather(
            over_socket(running.url, "a", "k"), over_http(running.url, "a", "k")
        )
        assert (told, status, found) == (first, 200, first)
        assert await over_http(running.url, "b", "k") == (409, "LD205")
        assert await running.client.result(first) == "A"
    assert ran == ["a"]


async def test_a_client_cannot_say_what_its_task_came_from(tmp_path: Path) -> None:
    origin = {"kind": "child", "task_id": "another"}
    async with deployment(tmp_path) as running:
        async with httpx2.AsyncClient(base_url=running.url, timeout=DEADLINE_S) as http:
            body = {"service": "shout", "input": {"text": "a"}, "options": {"origin": origin}}
            answer = await http.post("/v1/tasks", json=body)
            assert (answer.status_code, answer.json()["code"]) == (400, "LD201")
        with pytest.raises(Exception, match=r"options\.origin"):
            await running.client.submit("shout", text="a", options={"origin": origin})
