"""Keys that are left out of what people look at, in a deployment that works with their values."""

from __future__ import annotations

from typing import Any

from llama_deploy import Deployment, NonRetryableError, service
from llama_deploy.services import HumanService

SECRET = "hunter2-is-secret"


@service
async def login(user: str, password: str) -> dict[str, Any]:
    """Needs the real password."""
    assert password == SECRET
    return {"user": user, "session": {"api_token": SECRET}}


@service
async def fail(password: str) -> None:
    """Says too much."""
    raise NonRetryableError(f"cannot log in with password={password}")


def _shown(documents: list[Any]) -> str:
    return "\n".join(document.model_dump_json() for document in documents)


async def test_services_and_results_have_the_value_and_people_do_not() -> None:
    redact = ["*password*", "*_token"]
    async with Deployment(
        [login, fail, HumanService("clerk")], store=":memory:", quiet=True, redact=redact
    ) as deployment:
        client = deployment.client
        task_id = await client.submit("login", user="ada", password=SECRET)
        assert await client.result(task_id) == {"user": "ada", "session": {"api_token": SECRET}}
        failed = await client.submit("fail", password=SECRET)
        assert (await client.wait(failed)).status == "failed"
        asked = await client.submit("clerk", input={"password": SECRET, "case": 7})
        async for entry in client.history(asked, follow=True):
            if entry.kind == "input_requested":
                break
        for one in (task_id, failed, asked):
            entries = [entry async for entry in client.history(one, follow=one != asked)] if one != asked else []
            page = await client._ask("GET", f"/v1/tasks/{one}/history")
            assert SECRET not in _shown(entries)
            assert SECRET not in str(page), page
            assert "[redacted]" in str(page)
        assert "ada" in str(await client._ask("GET", f"/v1/tasks/{task_id}/history"))
        view = await client.get_task(asked)
        assert SECRET not in view.model_dump_json()
        assert (await client.status())["redact"] == redact


async def test_without_patterns_nothing_is_left_out() -> None:
    async with Deployment([login], store=":memory:", quiet=True) as deployment:
        task_id = await deployment.submit("login", user="ada", password=SECRET)
        await deployment.client.result(task_id)
        assert SECRET in _shown([entry async for entry in deployment.client.history(task_id)])
