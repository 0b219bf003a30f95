"""Hosts and origins: what a browser may be made to ask, and who may ask it."""

from __future__ import annotations

import pytest

from llama_deploy.control_plane.http.access.places import Places
from llama_deploy.errors import CrossSiteError, WrongHostError

LOCAL = Places(listens_on="127.0.0.1", hosts=["Desk.example.com"], origins=["https://page.example.com"])


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST:1", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "[::1]", "10.0.0.5"]
    + ["a.localhost", "desk.example.com:8000", "desk.example.com.", ""],
)
def test_names_of_this_machine_are_right(host: str) -> None:
    LOCAL.check_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evillocalhost",
        "control",
    ]
    + ["example.com", "1.evil", "[evil", "evil.example@127.0.0.1.x", "127.0.0.1@evil.example"],
)
def test_a_name_that_leads_here_is_not_let_in(host: str) -> None:
    with pytest.raises(WrongHostError) as caught:
        LOCAL.check_host(host)
    assert "hosts" in caught.value.fix


def test_beyond_loopback_names_without_a_dot_are_right() -> None:
    remote = Places(listens_on="0.0.0.0")
    for host in ("control-plane:8000", "localhost", "192.168.1.5", "demo.shop.svc:80", "demo.shop.svc.cluster.local"):
        remote.check_host(host)
    for host in ("evil.example", "svc.evil.example", "evilsvc.com"):
        with pytest.raises(WrongHostError):
            remote.check_host(host)
    with pytest.raises(WrongHostError):
        LOCAL.check_host("demo.shop.svc")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "WS"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "", "http://127.0.0.1"])
def test_pages_of_other_sites_change_nothing(method: str, origin: str) -> None:
    with pytest.raises(CrossSiteError):
        LOCAL.check_origin(origin, "127.0.0.1:8000", method)


def test_own_pages_and_listed_ones_may() -> None:
    LOCAL.check_origin("http://127.0.0.1:8000", "127.0.0.1:8000", "POST")
    LOCAL.check_origin("https://Page.example.com", "127.0.0.1:8000", "POST")
    LOCAL.check_origin(None, "127.0.0.1:8000", "POST")
    LOCAL.check_origin("https://evil.example", "127.0.0.1:8000", "GET")  # and it cannot read the answer
