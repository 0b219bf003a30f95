"""One answer of all control planes: what each knows alone is added, who does not answer is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from tests.control_plane.harness import FakeInstance, until
from tests.control_plane.served_planes import SETTINGS, ServedPlane, ServedPlanes, served_planes
from tests.support import DEADLINE_S

from llama_deploy.client import Client
from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.peers import HOPS
from llama_deploy.errors import InvalidRequestError, PlaneNotAnsweringError, ServiceNotFoundError
from llama_deploy.messages import frames
from llama_deploy.types import ServiceDefinition

PATIENT = EngineSettings(
    recovery_grace_s=0.2, overdue_s=30.0, leader_wait_s=60.0, shard_lease_s=20.0, peer_answer_s=60.0
)
"""What does not answer is cut off here, not slow: no deadline decides."""


async def wait_at(served: ServedPlane, client: Client, count: int, service: str = "echo", **options: Any) -> list[str]:
    """Tasks that a control plane leads, submitted."""
    ids = [served.led() for _ in range(count)]
    for number, task_id in enumerate(ids):
        await client.submit(service, value=number, task_id=task_id, **options)
    return ids


@pytest.mark.slow
async def test_what_waits_is_counted_and_listed_over_all(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", settings=PATIENT) as made, Client(made["a"].url) as client:
        here, there = made["a"], made["b"]
        await client.pause_service("echo", reason="for the test")
        ours, theirs = await wait_at(here, client, 3), await wait_at(there, client, 5)
        queue = await client.get_queue("echo")
        assert (queue.waiting, queue.instances, queue.state, queue.missing) == (8, 2, "paused", [])
        assert queue.held_back == {"paused": 8}
        (listed,) = (one for one in await client.list_queues() if one.name == "echo")
        assert listed.model_copy(update={"oldest_waiting_s": queue.oldest_waiting_s}) == queue
        for name, url, count in (("a", here.url, 3), ("b", there.url, 5)):
            for asked in (name, url):
                assert (await client.get_queue("echo", control_plane=asked)).waiting == count
            (service,) = (
                s for s in await client.list_services(control_plane=name) if s.definition.service_name == "echo"
            )
            assert [one.control_planes for one in service.instances] == [[name]]
        steps = [step async for step in client.list_waiting("echo")]
        assert {step.task_id for step in steps} == {*ours, *theirs}
        assert [step.place for step in steps] == list(range(1, 9))
        assert [step.task_id for step in steps if step.control_plane == "b"] == theirs, "first in, first out at each"
        assert all("paused" in str(step.reason) for step in steps)
        pages: list[str] = []
        after: int | None = 0
        while after is not None:
            page = await client.list_waiting_page("echo", after=after, limit=3)
            pages += [step.task_id for step in page.items]
            after = page.next
        assert pages == [step.task_id for step in steps]
        with pytest.raises(ServiceNotFoundError):
            await client.get_queue("nobody")
        with pytest.raises(InvalidRequestError, match="no control plane 'c'"):
            await client.get_queue("echo", control_plane="c")
        await _lists_say_what_tasks_wait_for(made, client, theirs)
        await _status_is_of_all(made, client)
        await client.resume_service("echo")
        assert sorted([await client.result(task_id) for task_id in theirs]) == list(range(5))


async def _lists_say_what_tasks_wait_for(made: ServedPlanes, client: Client, theirs: list[str]) -> None:
    views = [view async for view in client.list_tasks(filter="state:unfinished", service="echo")]
    assert {view.waiting_for for view in views if view.task_id in theirs} == {"echo is paused by http: for the test"}, (
        "also of tasks that another control plane leads"
    )
    assert len(views) == 8
    counted = await client.bulk("cancel", f"id:{','.join(theirs)}", dry_run=True)
    assert [bool(view.waiting_for) for view in counted.first] == [True] * 5
    async with httpx2.AsyncClient(base_url=made["a"].url, timeout=DEADLINE_S) as http:
        asked = [theirs[3], "no-such-task", views[0].task_id]
        items = (await http.post("/v1/tasks/lookup", json={"task_ids": asked})).json()["items"]
    assert [item["task_id"] for item in items] == [asked[0], asked[2]]
    assert all(item["waiting_for"] for item in items)


async def _status_is_of_all(made: ServedPlanes, client: Client) -> None:
    status = await client.status()
    alone = [await client.status(control_plane=name) for name in "ab"]
    assert status["unfinished_in_memory"] == sum(one["unfinished_in_memory"] for one in alone) == 8
    assert [one["unfinished_in_memory"] for one in alone] == [3, 5]
    assert status["instances"] == 2
    assert [one["instances"] for one in alone] == [1, 1]
    assert [one["name"] for one in status["control_planes"]] == ["a", "b"]
    assert [one["url"] for one in status["control_planes"]] == [made["a"].url, made["b"].url]
    assert "instance_ids" not in status
    assert status["missing"] == []


@pytest.mark.slow
async def test_one_that_does_not_answer_is_named(store_url: str) -> None:
    slow_to_go = EngineSettings(recovery_grace_s=0.2, leader_wait_s=60.0, shard_lease_s=600.0, peer_answer_s=60.0)
    async with served_planes(store_url, "a", "b", settings=slow_to_go) as made, Client(made["a"].url) as client:
        await client.get_queue("echo")  # over a connection that is kept
        made["b"].cut_off()
        for view in (await client.get_queue("echo"), await client.get_service("echo")):
            assert [(one.name, one.url) for one in view.missing] == [("b", made["b"].url)]
            assert view.missing[0].why
        assert (await client.get_queue("echo")).instances == 1
        for page in (
            await client.list_queues_page(),
            await client.list_services_page(),
            await client.list_waiting_page("echo"),
        ):
            assert [one.name for one in page.missing] == ["b"]
        status = await client.status()
        assert [one["name"] for one in status["missing"]] == ["b"]
        assert [one["name"] for one in status["control_planes"]] == ["a"]
        with pytest.raises(PlaneNotAnsweringError, match="does not answer"):
            await client.status(control_plane="b")
        assert (await client.pause_service("echo")).missing[0].name == "b"
        await client.resume_service("echo")


@pytest.mark.slow
async def test_one_that_hangs_is_named_in_time(store_url: str) -> None:
    hasty = EngineSettings(recovery_grace_s=0.2, leader_wait_s=5.0, shard_lease_s=60.0, peer_answer_s=0.2)
    async with served_planes(store_url, "a", "b", settings=hasty) as made, Client(made["a"].url) as client:
        made["b"].proxy.hold()
        assert [one.name for one in (await client.get_queue("echo")).missing] == ["b"]
        made["b"].proxy.let_go()


@pytest.mark.slow
async def test_somebody_else_at_the_address_is_not_counted(store_url: str) -> None:
    """A control plane that was killed is known until its lease ends; the one that follows at its URL is another."""
    async with (
        served_planes(store_url, "a", "b", settings=SETTINGS) as made,
        httpx2.AsyncClient(base_url=made["b"].url, timeout=DEADLINE_S) as http,
    ):
        passed_on = {HOPS: "1"}
        for name, status in (("an-earlier-one", 400), (made["b"].plane.leadership.owner, 200)):
            answer = await http.get("/v1/queues/echo", params={"control_plane": name}, headers=passed_on)
            assert answer.status_code == status
        answer = await http.get("/v1/queues/echo", headers=passed_on)
        assert answer.json()["instances"] == 1, "who is asked on behalf of another speaks of itself"


async def instance_at(served: ServedPlane, instance_id: str) -> FakeInstance:
    """An instance that is connected to one control plane only."""
    definition = ServiceDefinition(service_name="work", description="", concurrency=1)
    instance = FakeInstance([definition], instance_id=instance_id)
    await instance.connect(served.plane)
    return instance


@pytest.mark.slow
async def test_an_instance_is_drained_by_any_control_plane(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", settings=PATIENT) as made, Client(made["a"].url) as client:
        here, there = made["a"], made["b"]
        alone = await instance_at(there, "alone")
        both = [await instance_at(served, "both") for served in (here, there)]
        for instance in (alone, *both):
            instance.send(frames.Credits("work", 1))
        view = await client.drain_instance("work", "alone", timeout_s=7)
        assert (view.instance_id, view.control_planes) == ("alone", ["b"])
        assert (await alone.got(frames.Drain)).timeout_s == 7
        assert both[0].all(frames.Drain) == both[1].all(frames.Drain) == []
        view = await client.drain_instance("work", "both")
        assert view.control_planes == ["a", "b"]
        for instance in both:  # whichever of its connections is broken without a word, the other one tells it
            await instance.got(frames.Drain)
        with pytest.raises(ServiceNotFoundError, match="no instance 'nobody'"):
            await client.drain_instance("work", "nobody")
        there.cut_off()
        with pytest.raises(PlaneNotAnsweringError):
            await client.drain_instance("work", "alone")


@pytest.mark.slow
async def test_a_drained_instance_gets_no_steps_of_anybody(store_url: str) -> None:
    """A real instance, connected to both: drained by one, it takes nothing of either, and ends."""
    from llama_deploy.services import service
    from llama_deploy.services.link import serve_services

    held, gate = asyncio.Event(), asyncio.Event()

    @service(name="slow", concurrency=4)
    async def slow() -> str:
        held.set()
        await gate.wait()
        return "done"

    async with served_planes(store_url, "a", "b", settings=PATIENT) as made, Client(made["a"].url) as client:
        leaving: asyncio.Task[bool] = asyncio.create_task(
            serve_services([slow], control_plane_url=made["a"].url, instance_id="leaves", handle_signals=False)
        )
        both = [made[name].plane.engine.registry for name in "ab"]
        await until(lambda: all(registry.has_instance("slow") for registry in both))
        running = await client.submit("slow", task_id=made["b"].led())
        await held.wait()
        (shown,) = (await client.get_service("slow")).instances
        assert (shown.instance_id, shown.running, shown.control_planes) == ("leaves", 1, ["a", "b"])
        await client.drain_instance("slow", "leaves")
        await until(
            lambda: all(registry.services["slow"].instances["leaves"].capacity("slow") == 0 for registry in both)
        )
        assert (await client.get_service("slow")).state == "draining"
        waiting = [await client.submit("slow", task_id=made[name].led(), options={}) for name in "ab"]
        assert (await client.get_queue("slow")).waiting == 2
        gate.set()
        assert await client.result(running) == "done"
        assert await leaving, "all that it held was finished"
        assert {(await client.get_task(task_id)).hops for task_id in waiting} == {1}
        assert (await client.get_queue("slow")).waiting == 2


@pytest.mark.slow
async def test_named_tasks_are_acted_on_wherever_they_are_led(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", settings=PATIENT) as made, Client(made["a"].url) as client:
        here, there = made["a"], made["b"]
        await client.pause_service("echo")
        ids = [*await wait_at(there, client, 120), *await wait_at(here, client, 2)]
        async with httpx2.AsyncClient(base_url=here.url, timeout=20) as http:

            async def bulk(**body: Any) -> tuple[int, Any]:
                before = here.plane.peers.passed_on
                answer = await http.post("/v1/tasks/bulk", json=body)
                assert answer.status_code == 200, answer.text
                return here.plane.peers.passed_on - before, answer.json()["items"]

            requests, items = await bulk(action="cancel", task_ids=[*ids, "no-such-task"], reason="enough", by="me")
            assert requests == 1, "one for all of them"
            assert [item["task_id"] for item in items] == [*ids, "no-such-task"]
            assert [item["problem"] for item in items[:-1]] == [None] * 122
            assert items[-1]["problem"]["code"] == "LD203"
            entries = [entry async for entry in client.history(ids[0])]
            assert "enough" in str(entries[-1])
            # one that is asked on behalf of another acts on its own, and says so of the others
            answer = await http.post("/v1/tasks/bulk", json={"action": "delete", "task_ids": ids}, headers={HOPS: "1"})
            problems = [item["problem"] and item["problem"]["code"] for item in answer.json()["items"]]
            assert problems == ["LD409"] * 120 + [None] * 2
            requests, items = await bulk(action="delete", task_ids=ids)
            assert (requests, {str(item["problem"]) for item in items}) == (1, {"None"})
            for wrong in ({}, {"filter": "id:*", "task_ids": ids}, {"task_ids": ids, "dry_run": True}):
                refused = await http.post("/v1/tasks/bulk", json={"action": "cancel", **wrong})
                assert refused.status_code == 400
        await client.resume_service("echo")


@pytest.mark.slow
async def test_what_moves_while_it_is_acted_on_is_asked_again(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leads it by then does it: a stale view of who leads what costs a request, and nothing else."""
    async with served_planes(store_url, "a", "b", settings=PATIENT) as made, Client(made["a"].url) as client:
        here, there = made["a"], made["b"]
        await client.pause_service("echo")
        ids = await wait_at(here, client, 3)
        routing, leadership = here.plane.routing, here.plane.leadership
        theirs = leadership.leader_of(there.led())
        leads: Callable[[str], bool] = routing.leads
        asked: list[str] = []

        def stale(session_id: str) -> bool:
            asked.append(session_id)
            return leads(session_id) and len(asked) > 2 * len(ids)

        monkeypatch.setattr(routing, "leads", stale)
        monkeypatch.setattr(routing, "leader", lambda _: theirs)
        answer = await client.bulk("cancel", f"id:{','.join(ids)}")
        assert [item.problem for item in answer.items] == [None] * 3
        monkeypatch.undo()
        await client.resume_service("echo")
