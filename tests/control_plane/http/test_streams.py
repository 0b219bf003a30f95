"""Streams and histories over HTTP: live, resumable by number, as SSE and as lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from tests.control_plane.http.conftest import Served
from tests.support import DEADLINE_S, eventually

SSE = {"Accept": "text/event-stream"}


@dataclass
class Event:
    id: str
    name: str
    data: Any


async def events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Server-sent events, read as the HTML standard has it."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Event(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}


def read(text: str) -> list[Event]:
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.partition(": ")[::2] for line in block.splitlines())
        found.append(Event(fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


async def done(http: httpx2.AsyncClient, count: int) -> None:
    """A task `t` that has streamed `count` events and ended."""
    body = {"service": "tell", "input": {"events": count}, "task_id": "t"}
    assert (await http.post("/v1/tasks", json=body, params={"wait_s": 60})).json()["state"] == "completed"


async def test_lines_from_any_number_on(http: httpx2.AsyncClient) -> None:
    await done(http, 300)
    whole = await http.get("/v1/tasks/t/stream")
    assert whole.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["n"] for line in whole.text.splitlines()] == list(range(300))
    for first in (1, 255, 256, 257, 299, 300, 1000):
        part = await http.get("/v1/tasks/t/stream", params={"first": first})
        assert [json.loads(line)["n"] for line in part.text.splitlines()] == list(range(first, 300))


async def test_events_have_their_numbers_and_an_end(http: httpx2.AsyncClient) -> None:
    await done(http, 3)
    answer = await http.get("/v1/tasks/t/stream", headers=SSE)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert read(answer.text) == [
        *(Event(str(number), "event", {"n": number}) for number in range(3)),
        Event("", "end", {"state": "completed"}),
    ]


@pytest.mark.parametrize(("last", "rest"), [("0", [1, 2]), ("1", [2]), ("2", []), ("7", []), ("", [0, 1, 2])])
async def test_a_reader_goes_on_after_the_last_event_it_saw(
    http: httpx2.AsyncClient, last: str, rest: list[int]
) -> None:
    await done(http, 3)
    answer = await http.get("/v1/tasks/t/stream?first=0", headers={**SSE, "Last-Event-ID": last})
    assert [event.data["n"] for event in read(answer.text)[:-1]] == rest


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "0x1", "9" * 30])
async def test_a_last_event_that_is_no_number_is_refused(http: httpx2.AsyncClient, last: str) -> None:
    await done(http, 1)
    for route in ("stream", "history"):
        answer = await http.get(f"/v1/tasks/t/{route}", headers={**SSE, "Last-Event-ID": last})
        assert (answer.status_code, answer.json()["code"]) == (400, "LD201")


async def test_a_stream_is_live_and_ends_with_its_task(served: Served, live: httpx2.AsyncClient) -> None:
    await live.post("/v1/tasks", json={"service": "gate", "input": {"name": "g"}, "task_id": "g"})
    async with live.stream("GET", "/v1/tasks/g/stream", headers=SSE) as answer:
        seen = events(answer.aiter_lines())
        assert await anext(seen) == Event("0", "event", "before")
        served.open("g")
        assert [event async for event in seen] == [
            Event("1", "event", "after"),
            Event("", "end", {"state": "completed"}),
        ]


async def test_a_slow_task_does_not_keep_a_stream_from_starting(live: httpx2.AsyncClient) -> None:
    await live.post("/v1/tasks", json={"service": "person", "input": "?", "task_id": "h"})
    async with asyncio.timeout(DEADLINE_S), live.stream("GET", "/v1/tasks/h/stream") as answer:
        assert answer.status_code == 200, "the head is sent before there is any event"


async def test_the_history_by_pages(http: httpx2.AsyncClient) -> None:
    await done(http, 1)
    page = (await http.get("/v1/tasks/t/history", params={"limit": 1})).json()
    assert ([entry["kind"] for entry in page["items"]], page["next"]) == (["submitted"], 1)
    rest = (await http.get("/v1/tasks/t/history", params={"after": 1})).json()
    assert ([entry["seq"] for entry in rest["items"]], rest["next"]) == ([2], None)
    assert rest["items"][0]["outcome"]["value"] == 1


async def test_the_history_is_followed_live(served: Served, live: httpx2.AsyncClient) -> None:
    await live.post("/v1/tasks", json={"service": "gate", "input": {"name": "g"}, "task_id": "g"})
    async with live.stream("GET", "/v1/tasks/g/history?follow=true") as lines:
        assert lines.headers["content-type"] == "application/x-ndjson"
        async with live.stream("GET", "/v1/tasks/g/history", headers=SSE) as answer:
            seen = events(answer.aiter_lines())
            first = await anext(seen)
            assert (first.id, first.name, first.data["kind"]) == ("1", "entry", "submitted")
            served.open("g")
            rest = [event async for event in seen]
        assert [(event.id, event.name) for event in rest] == [("2", "entry"), ("", "end")]
        assert [json.loads(line)["seq"] async for line in lines.aiter_lines()] == [1, 2]
    again = await live.get("/v1/tasks/g/history", headers={**SSE, "Last-Event-ID": "1"})
    assert [event.id for event in read(again.text)] == ["2", ""]


async def test_readers_and_waiters_go_on_when_a_task_has_to_be_loaded_again(
    served: Served, live: httpx2.AsyncClient
) -> None:
    await live.post("/v1/tasks", json={"service": "gate", "input": {"name": "g"}, "task_id": "g"})
    waiting = asyncio.ensure_future(live.get("/v1/tasks/g/result?wait_s=60"))
    engine = served.deployment.plane.engine
    entry = await engine.cache.get("g")
    await eventually(lambda: entry.ended_callbacks)
    async with (
        live.stream("GET", "/v1/tasks/g/stream", headers=SSE) as answer,
        live.stream("GET", "/v1/tasks/g/history", headers=SSE) as history,
    ):
        seen = events(answer.aiter_lines())
        entries = events(history.aiter_lines())
        assert (await anext(seen)).data == "before"
        assert (await anext(entries)).data["kind"] == "submitted"
        engine.recording.refused(entry)
        served.open("g")
        assert [event.data async for event in seen] == ["after", {"state": "completed"}]
        assert [event.id async for event in entries] == ["2", ""]
    assert (await waiting).json()["result"]["result"] == "went through"


@pytest.mark.parametrize("route", ["", "/result", "/history", "/stream"])
async def test_a_task_that_does_not_exist(http: httpx2.AsyncClient, route: str) -> None:
    answer = await http.get(f"/v1/tasks/nobody{route}")
    assert (answer.status_code, answer.json()["code"]) == (404, "LD203")
    assert answer.headers["content-type"] == "application/problem+json"
