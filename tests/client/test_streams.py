"""Streams and histories: every number once, in order, across breaks; a slow reader holds up nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.client.fake_control_plane import FakeControlPlane, FakeTask, Peer, send_items
from tests.support import eventually

from llama_deploy.client import Client, StreamEvent
from llama_deploy.connections import requests
from llama_deploy.errors import InvalidRequestError, ProtocolError, TaskNotFoundError
from llama_deploy.messages.frames import ClientOp, Follow, Forget, Items, StreamEnd, Subscribe


def encoded(*events: Any) -> list[bytes]:
    return [msgspec.json.encode(event) for event in events]


async def test_a_stream_gives_numbers_and_data(client: Client, task: FakeTask) -> None:
    events = [event async for event in client.stream("t")]
    assert events == [StreamEvent(number, {"n": number}) for number in range(10)]
    assert [event.index async for event in client.stream("t", first=7)] == [7, 8, 9]
    assert [event async for event in client.stream("t", first=10)] == []


async def test_a_stream_of_nobody_is_refused(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = lambda plane, peer, op: peer.refuse(op.request, TaskNotFoundError("no task"))
    with pytest.raises(TaskNotFoundError):
        await anext(client.stream("nobody"))
    with pytest.raises(InvalidRequestError, match="`first` is -1"):
        await anext(client.stream("nobody", first=-1))


async def test_events_arrive_as_they_are_recorded(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = lambda *_: None
    stream = client.stream("t")
    first = asyncio.ensure_future(anext(stream))
    await eventually(lambda: plane.ops)
    plane.peers[0].reply(Items(1, 0, encoded("a")))
    assert await first == StreamEvent(0, "a")
    plane.peers[0].reply(Items(1, 1, encoded("b", "c")))
    assert [await anext(stream), await anext(stream)] == [StreamEvent(1, "b"), StreamEvent(2, "c")]
    plane.peers[0].reply(StreamEnd(1))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_break_leaves_no_gap_and_no_duplicate(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    def three_at_a_time(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        assert isinstance(op, Subscribe)
        peer.reply(Items(op.request, op.first, encoded(*task.events[op.first : op.first + 3])))
        if op.first + 3 < len(task.events):
            asyncio.get_running_loop().call_later(0.005, peer.drop)
        else:
            peer.reply(StreamEnd(op.request))

    plane.handle = three_at_a_time
    assert [event.index async for event in client.stream("t")] == list(range(10))
    assert [op.first for op in plane.ops if isinstance(op, Subscribe)] == [0, 3, 6, 9]


async def test_what_is_sent_twice_is_given_once(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    def overlapping(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        peer.reply(
            Items(op.request, 0, encoded(0, 1, 2)),
            Items(op.request, 1, encoded(1, 2, 3)),
            Items(op.request, 0, encoded(0)),
            StreamEnd(op.request),
        )

    plane.handle = overlapping
    assert [event.data async for event in client.stream("t")] == [0, 1, 2, 3]


async def test_a_gap_is_an_error_after_what_is_good(plane: FakeControlPlane, client: Client) -> None:
    plane.handle = lambda plane, peer, op: peer.reply(
        Items(op.request, 0, encoded(0, 1)), Items(op.request, 3, encoded(3))
    )
    seen: list[int] = []

    async def read() -> None:
        async for event in client.stream("t"):
            seen.append(event.index)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(ProtocolError, match="item 3 of the stream of task t before 2"):
        await read()
    assert seen == [0, 1]


async def test_leaving_a_stream_forgets_it(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    plane.handle = lambda plane, peer, op: (
        send_items(plane, peer, op.request, "t", 0) if isinstance(op, Subscribe) else None
    )
    stream = client.stream("t")
    assert (await anext(stream)).index == 0
    await stream.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: plane.ops[-1] == Forget(1))


async def test_a_slow_reader_is_unsubscribed_and_goes_on_where_it_was(
    plane: FakeControlPlane, client: Client, task: FakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "READ_AHEAD_BYTES_MAX", 100)
    task.events = [{"text": "x" * 40, "n": number} for number in range(10)]

    def two_at_a_time(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        if isinstance(op, Subscribe):
            for number in range(op.first, 10, 2):
                peer.reply(Items(op.request, number, encoded(*task.events[number : number + 2])))
            peer.reply(StreamEnd(op.request))

    plane.handle = two_at_a_time
    assert [event.index async for event in client.stream("t")] == list(range(10))
    subscribed = [op for op in plane.ops if isinstance(op, Subscribe)]
    assert [op.first for op in subscribed] == [0, 2, 4, 6, 8, 10]
    assert len({op.request for op in subscribed}) == 6
    assert sum(isinstance(op, Forget) for op in plane.ops) == 5


async def test_many_streams_share_the_connection(plane: FakeControlPlane, client: Client, task: FakeTask) -> None:
    async def read(first: int) -> list[int]:
        return [event.index async for event in client.stream("t", first=first)]

    assert await asyncio.gather(*map(read, range(10))) == [list(range(first, 10)) for first in range(10)]
    assert len(plane.peers) == 1
    assert len(plane.frames[0]) == 10


async def test_a_followed_history_is_numbered_from_one(plane: FakeControlPlane, client: Client) -> None:
    def entries(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
        assert isinstance(op, Follow)
        log = [{"seq": seq, "at": 1.0, "kind": "answered", "state": "working"} for seq in range(1, 6)]
        if op.after == 0:
            peer.reply(Items(op.request, 1, encoded(*log[:2])))
            asyncio.get_running_loop().call_later(0.005, peer.drop)
        else:
            peer.reply(Items(op.request, op.after + 1, encoded(*log[op.after :])), StreamEnd(op.request))

    plane.handle = entries
    assert [entry.seq async for entry in client.history("t", follow=True)] == [1, 2, 3, 4, 5]
    assert [op.after for op in plane.ops if isinstance(op, Follow)] == [0, 2]
    assert [entry.seq async for entry in client.history("t", after=3, follow=True)] == [4, 5]
    with pytest.raises(InvalidRequestError, match="`after` is -1"):
        await anext(client.history("t", after=-1))
