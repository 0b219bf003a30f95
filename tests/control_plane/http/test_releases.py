"""Which release is current, over HTTP and by both clients."""

from __future__ import annotations

import httpx2
import pytest
from tests.control_plane.http.conftest import Served

from llama_deploy.errors import ReleaseNotFoundError


async def test_a_release_is_made_current_followed_and_retired(http: httpx2.AsyncClient) -> None:
    empty = (await http.get("/v1/releases")).json()
    assert empty == {"current": None, "items": []}
    assert (await http.put("/v1/releases/1")).json()["current"] == "1"
    view = (await http.put("/v1/releases/2", json={"finish_within_s": 30})).json()
    assert [(one["release"], one["state"]) for one in view["items"]] == [("1", "finishing"), ("2", "current")]
    first = view["items"][0]
    assert first["finish_by"] == first["until"] + 30
    assert (await http.put("/v1/releases/2", json={"finish_within_s": 5})).json() == view
    assert [one["release"] for one in (await http.delete("/v1/releases/1")).json()["items"]] == ["2"]
    for path, status, code in (("1", 404, "LD248"), ("2", 400, "LD201")):
        refused = await http.delete(f"/v1/releases/{path}")
        assert (refused.status_code, refused.json()["code"]) == (status, code)


async def test_what_makes_no_sense_is_refused(http: httpx2.AsyncClient) -> None:
    for body in ({"finish_within_s": -1}, {"finish_within_s": "soon"}, {"within": 3}):
        assert (await http.put("/v1/releases/1", json=body)).status_code == 400
    assert (await http.put(f"/v1/releases/{'x' * 300}")).status_code == 400
    assert (await http.get("/v1/releases")).json()["items"] == []


async def test_the_client_says_the_same(served: Served) -> None:
    client = served.deployment.client
    await client.use_release("1")
    view = await client.use_release("2", finish_within_s=30)
    assert (view.current, [one.state for one in view.items]) == ("2", ["finishing", "current"])
    assert await client.list_releases() == view
    await client.retire_release("1")
    with pytest.raises(ReleaseNotFoundError):
        await client.retire_release("1")
