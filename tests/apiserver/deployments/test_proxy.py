"""What a proxy in front of deployments keeps to itself."""

from __future__ import annotations

import httpx2
from starlette.requests import Request

from llama_deploy.apiserver.deployments.http.proxy import Proxy


async def test_tokens_and_pages_are_not_told_and_our_own_headers_take_their_place() -> None:
    seen: list[httpx2.Headers] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers)
        return httpx2.Response(204)

    proxy = Proxy()
    await proxy.close()
    proxy._client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    headers = {
        "Authorization": "Bearer of-the-caller",
        "Origin": "http://x",
        "X-Llama-Deploy-For": "boss admin",
        "A": "b",
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw})
    await proxy.request(request, "http://127.0.0.1:1/")
    await proxy.request(request, "http://127.0.0.1:1/", headers={"authorization": "Bearer of-ours"})
    await proxy.close()
    assert [one.get("authorization") for one in seen] == [None, "Bearer of-ours"]
    assert all("origin" not in one and "x-llama-deploy-for" not in one and one["a"] == "b" for one in seen)
