"""The connections of one control plane to the others: one to each that lives, and none to who was there before."""

from __future__ import annotations

import asyncio

import pytest

from llama_deploy.control_plane.leadership import Member
from llama_deploy.control_plane.peers import Peers
from llama_deploy.errors import ConnectionLostError, ShuttingDownError


async def test_one_that_has_begun_again_at_the_same_url_is_another_one() -> None:
    peers = Peers()
    accepted = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()  # and says nothing, ever: its end was not heard of
        silent.append(writer)

    silent: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        before, now = (Member(owner, "a", url, 0, ()) for owner in ("before", "now"))
        connection = peers.connection(before)
        assert peers.connection(before) is connection
        assert peers.connection(now) is not connection
        asked = asyncio.create_task(connection.call("task", None, wait=True))
        await accepted.wait()
        peers.keep_only({"now"})
        with pytest.raises(ConnectionLostError):
            await asked
        await peers.close()
        for writer in silent:
            writer.close()


async def test_nobody_is_asked_by_one_that_has_stopped() -> None:
    peers = Peers()
    peers.http("http://there")
    await peers.close()
    with pytest.raises(ShuttingDownError):
        peers.http("http://there")
    await peers.close()
