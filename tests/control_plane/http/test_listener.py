"""Where a control plane listens: never beyond loopback by accident, and never without saying why not at all."""

from __future__ import annotations

import socket

import pytest

from llama_deploy.control_plane.http.listener import bind
from llama_deploy.errors import PortInUseError, SettingError, UnsafeListenError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.com", "1.1.1.1", "*"])
def test_it_does_not_listen_beyond_loopback_unless_told(host: str) -> None:
    with pytest.raises(UnsafeListenError) as caught:
        bind(host, 0)
    assert "there is no authentication" in caught.value.what
    assert "--allow-remote" in caught.value.fix


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_loopback_needs_no_word(host: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    try:
        listener = bind(host, 0)
    except SettingError as error:
        if host != "::1":
            raise
        pytest.skip(f"there is no IPv6 here: {error}")
    with listener:
        assert listener.getsockname()[1] > 0


def test_told_so_it_listens_everywhere() -> None:
    with bind("0.0.0.0", 0, allow_remote=True) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


def test_a_port_in_use_is_said() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            bind("127.0.0.1", port)
    assert str(port) in caught.value.what
    assert "in use" in caught.value.why.lower()
    assert f"--port {port % 65535 + 1}" in caught.value.fix


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 70_000), ("127.0.0.1", -1)]
)
def test_an_address_that_is_none_of_this_machine_is_no_port_in_use(host: str, port: int) -> None:
    with pytest.raises(SettingError) as caught:
        bind(host, port, allow_remote=True)
    assert host in caught.value.what
    assert caught.value.why


def test_a_port_that_answers_again_at_once() -> None:
    """A control plane that was killed comes back on its port although connections of it still linger."""
    with bind("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        client = socket.create_connection(address)
        listener.setblocking(True)
        server, _ = listener.accept()
    server.close()  # the side that closes first keeps the port in TIME_WAIT
    client.close()
    with bind(*address[:2]):
        pass


def test_dead_peers_are_noticed() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        server, _ = listener.accept()
        with server:
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
