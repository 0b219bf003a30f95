"""The embedded deployment: what it starts, what it refuses, and what the next one under its name carries on with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support import DEADLINE_S

from llama_deploy.apiserver import Deployment
from llama_deploy.errors import ServiceStartError, SettingError, StoreLockedError
from llama_deploy.services import ServiceContext, service


@service
async def shout(text: str) -> str:
    """Upper case."""
    return text.upper()


async def test_ten_lines(tmp_path: Path) -> None:
    async with Deployment([shout], store=tmp_path / "s.db", quiet=True) as deployment:
        assert await deployment.run("shout", text="hello") == "HELLO"
        assert deployment.store_location == str(tmp_path / "s.db")


@pytest.mark.parametrize("name", ["x" * 300, "a\nb"], ids=["long", "unprintable"])
async def test_a_service_name_that_cannot_be_used_is_said_at_once(name: str) -> None:
    bad = service(name=name)(lambda text: text)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ServiceStartError, match="cannot be used"):
            async with Deployment([bad], store=":memory:", quiet=True):
                pass


async def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(SettingError, match="two services are named 'shout'"):
        Deployment([shout, service(name="shout")(lambda text: text)], store=":memory:")


async def test_a_second_deployment_on_the_same_store_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with Deployment([shout], store=tmp_path / "s.db", quiet=True) as first:
        with pytest.raises(StoreLockedError):
            async with Deployment([shout], store=tmp_path / "s.db", quiet=True):
                pass
        assert await first.run("shout", text="x") == "X"


async def test_what_was_unfinished_is_carried_on_by_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = asyncio.Event()
    begun = asyncio.Event()
    attempts: list[int] = []

    @service
    async def hold(context: ServiceContext) -> str:
        """Waits at the gate."""
        attempts.append(context.attempt)
        begun.set()
        await gate.wait()
        return context.step_id

    async with Deployment([hold], store=tmp_path / "s.db", drain_timeout_s=0.0) as first:
        task_id = await first.submit("hold")
        await begun.wait()
    gate.set()
    async with Deployment([hold], store=tmp_path / "s.db") as second:
        assert await second.client.result(task_id) == f"{task_id}:1"
    assert attempts == [1, 2]
    assert "carrying on with 1 unfinished step" in capsys.readouterr().err


async def test_a_deployment_that_ends_by_an_error_of_its_own_is_cleaned_up(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with Deployment([shout], store=tmp_path / "s.db", quiet=True):
            raise KeyError
    async with Deployment([shout], store=tmp_path / "s.db", quiet=True) as again:
        assert await again.run("shout", text="x") == "X"
